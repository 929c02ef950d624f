"""What `puna show --prompt` shows: prompts by the file's own template, and those that are built from ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from puna.cli.common import printable
from puna.core import BadInput

if TYPE_CHECKING:
    from puna.text.tokenizer import Tokenizer

_DATE = date(2024, 9, 21)  # a fixed one: the same model shows the same prompt every day
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get weather info for places",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
_CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Lima"}}}

SAMPLES: Mapping[str, Mapping[str, Any]] = {
    "conversation": {
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Who are you?"},
            {"role": "assistant", "content": "A llama."},
            {"role": "user", "content": "Where from?"},
        ]
    },
    "tools": {
        "messages": [
            {"role": "user", "content": "How warm is it in Lima?"},
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "content": '{"celsius": 21}'},
        ],
        "tools": [_TOOL],
    },
}


def compare(tokenizer: Tokenizer, chat_format: str | None) -> dict[str, Any]:
    """Both prompts of every sample, as ids and text, or the sentence by which one is refused.

    `chat_format` is the builder's name; None: the one that the vocabulary was made for. Raises BadInput for
    an unknown name.
    """
    from puna.text.chat import encode_chat
    from puna.text.formats import build_prompt, find, guess

    chat_format = chat_format or guess(tokenizer)
    if chat_format is not None:
        find(chat_format)

    def built(sample: Mapping[str, Any]) -> list[int]:
        if chat_format is None:
            raise BadInput("the control tokens of the vocabulary are of no known format; use --chat-format")
        return build_prompt(tokenizer, **sample, chat_format=chat_format, date=_DATE)

    def by_template(sample: Mapping[str, Any]) -> list[int]:
        if tokenizer.chat_template is None:
            raise BadInput("the file has no chat template; prompts are built from ids")
        return encode_chat(tokenizer, **sample, date=_DATE)

    samples = {
        name: {
            "built": _prompt(tokenizer, built, sample),
            "template": _prompt(tokenizer, by_template, sample),
        }
        for name, sample in SAMPLES.items()
    }
    return {"chat_format": chat_format, "date": _DATE.isoformat(), "samples": samples}


def _prompt(
    tokenizer: Tokenizer, encode: Callable[[Mapping[str, Any]], list[int]], sample: Mapping[str, Any]
) -> dict[str, Any]:
    try:
        ids = encode(sample)
    except BadInput as error:
        return {"error": str(error)}
    return {"ids": ids, "text": tokenizer.decode(ids)}


def print_comparison(tokenizer: Tokenizer, report: Mapping[str, Any]) -> None:
    """The prompts where they are equal, else what only one of them has."""
    print(f"prompt format {report['chat_format'] or 'unknown'}, today is {report['date']}")
    for name, sample in report["samples"].items():
        built, template = sample["built"], sample["template"]
        print(f"\n{name}")
        for who, prompt in (("built", built), ("template", template)):
            said = f"{len(prompt['ids'])} tokens" if "ids" in prompt else prompt["error"]
            print(f"  {who:<8}  {printable(said)}")
        ids = [prompt["ids"] for prompt in (built, template) if "ids" in prompt]
        if ids:
            _print_ids(tokenizer, ids[0], ids[-1])


def _print_ids(tokenizer: Tokenizer, built: Sequence[int], template: Sequence[int]) -> None:
    """A line for each stretch: in both "=", only built "-", only by the template "+"."""
    for kind, a, b, c, d in SequenceMatcher(None, built, template, autojunk=False).get_opcodes():
        if kind == "equal":
            _print_stretch("=", tokenizer, built[a:b])
            continue
        _print_stretch("-", tokenizer, built[a:b])
        _print_stretch("+", tokenizer, template[c:d])


def _print_stretch(sign: str, tokenizer: Tokenizer, ids: Sequence[int]) -> None:
    if ids:
        text = json.dumps(tokenizer.decode(ids, continuing=True), ensure_ascii=False)
        print(f"  {sign} {printable(text)}\n    {' '.join(map(str, ids))}")
