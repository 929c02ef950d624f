"""How long prompts and answers are: like those of ShareGPT, or fixed, or as a trace says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import log
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from puna.core import BadFile, BadValue, closest

if TYPE_CHECKING:
    from puna.loadtest.load import TraceLine

# Log-normal lengths. Means: 161.31 and 337.99 tokens, ShareGPT as tokenized for the vLLM paper (Kwon et al.
# 2023, figure 11). Spread: sigma = ln(P90 / median) / 1.2816, with P90 and median of ShareGPT's conversations
# in the Sarathi-Serve paper (Agrawal et al. 2024, table 2): 5696 / 1730 of prompts, 834 / 415 of answers.
PROMPT_MEAN, PROMPT_SIGMA = 161.31, 0.930
OUTPUT_MEAN, OUTPUT_SIGMA = 337.99, 0.545
# Draws outside are drawn again, with the limits of vLLM's own benchmark on ShareGPT; means fall a little.
LEAST, MOST_PROMPT, MOST_TOTAL = 4, 1024, 2048

MOST_TOKENS = 1_000_000
SHAREGPT = "log-normal, means 161 and 338 tokens (ShareGPT; vLLM paper), sigma 0.93 and 0.545 (Sarathi-Serve)"

# of a line, with the names that Mooncake's published traces use for the same
_KEYS = (
    *("at", "timestamp", "prompt", "messages", "hash_ids"),
    *("prompt_tokens", "input_length", "output_tokens", "max_tokens", "output_length"),
)
_MOST_TRACE = 256 << 20  # bytes


@dataclass(frozen=True, slots=True)
class LengthMix:
    """Tokens of prompts and answers: fixed where given, otherwise like ShareGPT's."""

    prompt_tokens: int | None = None
    output_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("--prompt-tokens", self.prompt_tokens), ("--output-tokens", self.output_tokens)):
            if value is not None and not 1 <= value <= MOST_TOKENS:
                raise BadValue(f"{name} must be from 1 to {MOST_TOKENS:,}, got {value}")

    def draw(self, random: Random) -> tuple[int, int]:
        """Tokens of a prompt and of its answer."""
        while True:
            n_prompt = round(random.lognormvariate(_mu(PROMPT_MEAN, PROMPT_SIGMA), PROMPT_SIGMA))
            n_output = round(random.lognormvariate(_mu(OUTPUT_MEAN, OUTPUT_SIGMA), OUTPUT_SIGMA))
            if LEAST <= n_prompt <= MOST_PROMPT and LEAST <= n_output <= MOST_TOTAL - n_prompt:
                return self.prompt_tokens or n_prompt, self.output_tokens or n_output

    @property
    def description(self) -> str:
        fixed = {"prompts": self.prompt_tokens, "answers": self.output_tokens}
        if None not in fixed.values():
            return f"prompts of {self.prompt_tokens} and answers of {self.output_tokens} tokens"
        given = [f"{name} of {value} tokens" for name, value in fixed.items() if value is not None]
        return "; ".join([SHAREGPT, *given])


def _mu(mean: float, sigma: float) -> float:
    """Of a log-normal distribution with this mean."""
    return log(mean) - sigma**2 / 2


def read_trace(path: Path) -> list[TraceLine]:
    """Requests of a JSONL file, one object a line.

    Keys: `prompt`, `messages` or `prompt_tokens` (also `input_length`); `output_tokens` (also `max_tokens`,
    `output_length`); `at` in seconds, or `timestamp` in milliseconds as Mooncake's traces have it, with their
    `hash_ids`: equal ids are equal blocks of 512 tokens. Raises BadFile with the line's number.
    """
    try:
        if path.stat().st_size > _MOST_TRACE:
            raise BadFile(f"{path} must be at most {_MOST_TRACE >> 20} MiB to be a trace; cut it")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadFile(f"{path} must be UTF-8 text in lines of JSON, found {error.reason}") from None
    lines = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                lines.append(_trace_line(json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise BadFile(f"{path}, line {number}: expected an object in JSON, {error}") from None
            except BadFile as error:
                raise BadFile(f"{path}, line {number}: {error}") from None
    if not lines:
        raise BadFile(f"{path} must hold one request in JSON a line, found none")
    return lines


def _trace_line(value: Any) -> TraceLine:
    from puna.loadtest.load import TraceLine

    if not isinstance(value, dict):
        raise BadFile(f"expected an object, found {str(value)[:40]!r}")
    for key in value:
        if key not in _KEYS:
            raise BadFile(f"unknown key {key!r}{closest(key, _KEYS)}; known are {', '.join(_KEYS)}")
    n_output = _whole(value, ("output_tokens", "max_tokens", "output_length"))
    if n_output is None:
        raise BadFile("expected output_tokens, the length of the answer, found none")
    n_prompt = _whole(value, ("prompt_tokens", "input_length"))
    prompt, messages = value.get("prompt"), value.get("messages")
    if sum(item is not None for item in (n_prompt, prompt, messages)) != 1:
        raise BadFile("expected exactly one of prompt, messages and prompt_tokens")
    if not isinstance(prompt, str | None):
        raise BadFile(f"prompt must be text, found {str(prompt)[:40]!r}")
    if messages is not None and not (
        isinstance(messages, list) and all(isinstance(m, dict) for m in messages)
    ):
        raise BadFile(f"messages must be a list of objects, found {str(messages)[:40]!r}")
    blocks = value.get("hash_ids", [])
    if not (isinstance(blocks, list) and all(isinstance(block, int) for block in blocks)):
        raise BadFile(f"hash_ids must be a list of whole numbers, found {str(blocks)[:40]!r}")
    return TraceLine(n_output, prompt, messages, n_prompt, _seconds(value), tuple(blocks))


def _whole(value: dict[str, Any], names: tuple[str, ...]) -> int | None:
    """Tokens under the one of `names` that is there."""
    found = [name for name in names if name in value]
    if len(found) > 1:
        raise BadFile(f"expected one of {' and '.join(found)}, which mean the same, found both")
    if not found:
        return None
    number = value[found[0]]
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= MOST_TOKENS:
        raise BadFile(f"{found[0]} must be a whole number from 1 to {MOST_TOKENS:,}, found {number!r}")
    return number


def _seconds(value: dict[str, Any]) -> float | None:
    name = "at" if "at" in value else "timestamp"
    time = value.get(name)
    if time is None:
        return None
    if not isinstance(time, int | float) or isinstance(time, bool) or not 0 <= time < 1e15:
        raise BadFile(f"{name} must be a number, 0 or more, found {time!r}")
    return time if name == "at" else time / 1000
