"""What requests that OpenAI's document allows are refused for here, and why.

Each entry says when it may be: a refusal whose reason is not true of the request is a failure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Asked:
    """A request; `ids` are those of all that exists."""

    body: Any = None
    query: Mapping[str, Any] = field(default_factory=dict)
    ids: frozenset[str] = frozenset()

    def get(self, name: str) -> Any:
        return self.body.get(name) if isinstance(self.body, dict) else None

    def has(self, *names: str) -> bool:
        return all(self.get(name) is not None for name in names)

    def objects(self, value: Any = None) -> Iterator[dict[str, Any]]:
        """All objects of the body, however deep."""
        value = self.body if value is None else value
        if isinstance(value, dict):
            yield value
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            if isinstance(item, dict | list):
                yield from self.objects(item)


@dataclass(frozen=True, slots=True)
class Refusal:
    status: int
    said: str  # a pattern; its groups are for `holds`
    reason: str
    holds: Callable[[Asked, re.Match[str]], bool]

    @property
    def shown(self) -> str:
        """The pattern, for readers."""
        return re.sub("…+", "…", re.sub(r"\(\?P[^)]*\)", "…", self.said))


_SAID = "as the document says in words"
_NEEDED = "the document forgets to say that it is needed"
_KINDS = "model|response|conversation|item|file|batch"
_ID = r"(?P<quote>['\"])(?P<id>.*)(?P=quote)"  # as Python writes it


def _is_nothing(asked: Asked, match: re.Match[str]) -> bool:
    return match["id"] not in asked.ids


def _is_empty(asked: Asked, _: re.Match[str]) -> bool:
    prompt = asked.get("input") if asked.get("prompt") is None else asked.get("prompt")
    return prompt in (None, "", []) or (isinstance(prompt, list) and ("" in prompt or [] in prompt))


def _is_silent(asked: Asked, _: re.Match[str]) -> bool:
    turns = (found for found in asked.objects() if found.get("role") == "assistant")
    return any(turn.get("content") is None and not turn.get("tool_calls") for turn in turns)


def _is_double(asked: Asked, _: re.Match[str]) -> bool:
    images = (found for found in asked.objects() if found.get("type") == "input_image")
    return any((image.get("image_url") is None) == (image.get("file_id") is None) for image in images)


def _is_nameless(asked: Asked, match: re.Match[str]) -> bool:
    return any(found.get(match[1]) == "" for found in asked.objects())


def _is_no_text(asked: Asked, _: re.Match[str]) -> bool:
    prompt = asked.get("prompt")
    texts = prompt if isinstance(prompt, list) else [prompt]
    return asked.has("suffix") and not all(isinstance(text, str) for text in texts)


def _is_long(_: Asked, match: re.Match[str]) -> bool:
    return int(match["found"]) > int(match["room"])


def _has_item(key: str, value: str | None) -> Callable[[Asked, re.Match[str]], bool]:
    return lambda asked, _: any(found.get(key) == value for found in asked.objects() if "role" not in found)


REFUSALS = (
    Refusal(404, rf"there is no ({_KINDS}) {_ID}", "nothing has that id", _is_nothing),
    Refusal(404, rf"there is no {_ID} in ['\"]", "nothing has that id", _is_nothing),
    Refusal(400, rf"there is no item {_ID}", "references are to items that are there", _is_nothing),
    Refusal(
        400, r"model is missing", f"{_NEEDED}; a server may have several models",
        lambda asked, _: not asked.has("model"),
    ),
    Refusal(400, r"input is missing", _NEEDED, lambda asked, _: not asked.has("input")),
    Refusal(
        400, r"the body (is missing|must be)|the body: Input", _NEEDED,
        lambda asked, _: not isinstance(asked.body, dict),
    ),
    Refusal(400, r"must have at least one (token|item)", "an empty prompt is no question", _is_empty),
    Refusal(
        400, r"there is no function_call with call_id .* before its function_call_output",
        "results are of calls", _has_item("type", "function_call_output"),
    ),
    Refusal(
        400, r"the prompt has (?P<found>\d+) tokens, but the context of this model holds (?P<room>\d+)",
        "nothing is cut unasked", _is_long,
    ),
    Refusal(400, r"must have content or tool_calls", _SAID, _is_silent),
    Refusal(
        400, r"stream_options need stream: true", _SAID,
        lambda asked, _: asked.has("stream_options") and not asked.get("stream"),
    ),
    Refusal(
        400, r"top_logprobs needs (logprobs|include)", _SAID, lambda asked, _: asked.has("top_logprobs")
    ),
    Refusal(
        400, r"continues a previous one or belongs to a conversation, found both", _SAID,
        lambda asked, _: asked.has("previous_response_id", "conversation"),
    ),
    Refusal(400, r"must have one of image_url and file_id", "an image is in one place", _is_double),
    Refusal(
        400, r"dimensions must be", f"{_SAID}: not every model's embeddings can be cut",
        lambda asked, _: asked.has("dimensions"),
    ),
    Refusal(
        400, r"max_tokens \(\d+\) and max_completion_tokens \(\d+\) mean the same", "which is meant?",
        lambda asked, _: asked.get("max_tokens") != asked.get("max_completion_tokens"),
    ),
    Refusal(
        400, r"tool_choice needs tools|allowed_tools must be some", "a choice among no tools, or of others",
        lambda asked, _: asked.get("tool_choice") not in (None, "none", "auto"),
    ),
    Refusal(
        400, r"(call_id|id|name): String should have at least 1 character",
        "they tell calls and items apart", _is_nameless,
    ),
    Refusal(
        400, r"to fill in code the vocabulary must have", "of most models; Code Llama has `suffix`",
        lambda asked, _: asked.has("suffix"),
    ),
    Refusal(400, r"suffix needs a prompt of text", "the gap is between two texts", _is_no_text),
    Refusal(
        400, r"echo and suffix cannot be had together", "which text would be repeated?",
        lambda asked, _: asked.has("echo", "suffix"),
    ),
    Refusal(
        400, r"echo with logprobs comes at once", "a prompt's log-probabilities are known together",
        lambda asked, _: asked.has("echo", "logprobs", "stream"),
    ),
    Refusal(
        400, r"a stored response comes at once", "it is there already",
        lambda asked, _: asked.query.get("stream") == "true",
    ),
    Refusal(
        400, r"a background response is stored", "it is asked for by its id",
        lambda asked, _: bool(asked.get("background") and (asked.get("stream") or not asked.get("store"))),
    ),
    Refusal(
        409, r"is \w+, only a batch that is validating or in progress can be cancelled", "it has ended",
        lambda *_: True,
    ),
)  # fmt: skip


def refusal(status: int, message: str, asked: Asked) -> Refusal | None:
    """The entry that a refusal falls under."""
    for known in REFUSALS:
        match = re.search(known.said, message, re.DOTALL)
        if known.status == status and match and known.holds(asked, match):
            return known
    return None
