"""Tool calls as models write them, generated: what is said is known, and is no work of the parser's.

`cases(n)` is a function of n alone. Every form that puna/text/tools.py names is written by a few lines here,
with arguments that hold what breaks parsers: quotes, brackets and tags inside strings, escapes, line breaks,
emoji, nesting. A third of the cases is cut off or damaged; then it is known how much of them is whole.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

NAMES = ("get_weather", "f", "g2", "my-tool", "tool.run")
BUILTIN = ("brave_search", "wolfram_alpha")
TOOLS = (*NAMES, *BUILTIN, "code_interpreter")
STRINGS = (
    "", "Oslo", "new\nline", 'quo"te', "it's", "back\\slash", "]})>,:;", "[f(a=1)]", '{"name": "f"}',
    "<function=f>{}</function>", "é😀 日本", "\t tab", "</function>", "# x", "{{ y }}", "a\\", "\\n",
    "<|python", "key=value, other='x'", "\u2028",
)  # fmt: skip
BEFORE = ("", "", "", "\n\n", "Sure, I will look.\n", "Let me see: ", "1. First é😀\n\n", "a < b, ok ")
AFTER = ("", "", "", " Done.", "\nThat is all.")
CODE = ('print("hi")\n', "x = {'a': [1, 2]}\nprint(x)", "for i in range(3):\n    print(f'{i}é')", "1 + 1")

Call = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """What a model says. `spans` are where each call can be cut off without harming those before it."""

    form: str
    text: str
    content: str  # what of it is text
    calls: list[Call]
    spans: list[tuple[int, int]] = field(default_factory=list)
    is_whole: bool = True


def value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.choice(["text", "text", "int", "float", "bool", "null", *(["list", "object"] * (depth < 2))])
    if kind == "text":
        return rng.choice(STRINGS)
    if kind == "int":
        return rng.choice([0, -1, 7, 2**53 - 1])
    if kind == "float":
        return rng.choice([0.5, -2.25, 1e-7])
    if kind == "bool":
        return rng.random() < 0.5
    if kind == "null":
        return None
    n = rng.randrange(3)
    if kind == "list":
        return [value(rng, depth + 1) for _ in range(n)]
    return {rng.choice(["x", "y z", "é", 'q"']): value(rng, depth + 1) for _ in range(n)}


def calls_of(rng: random.Random, most: int = 3) -> list[Call]:
    arguments = ("city", "a", "b_1", "über")
    return [
        (rng.choice(NAMES), {name: value(rng) for name in rng.sample(arguments, rng.randrange(4))})
        for _ in range(rng.randrange(1, most + 1))
    ]


# Forms: the pieces of an answer, of which each odd one is a call that stands for itself.

Write = Callable[[random.Random, list[Call]], list[str]]


def _json(key: str = "parameters", **more: Any) -> Callable[[Call], str]:
    return lambda call: json.dumps({**more, "name": call[0], key: call[1]}, ensure_ascii=False)


def _between(texts: list[str], separator: str) -> list[str]:
    pieces = [""]
    for i, text in enumerate(texts):
        pieces += [text, separator if i + 1 < len(texts) else ""]
    return pieces


def separate(write: Callable[[Call], str], separator: str) -> Write:
    return lambda rng, calls: _between([write(call) for call in calls], separator)


def grouped(write: Callable[[Call], str], begin: str, separator: str, end: str) -> Write:
    """All calls are one: whoever cuts it off has none."""
    return lambda rng, calls: ["", begin + separator.join(write(call) for call in calls) + end, ""]


def literal(data: Any) -> str:
    if isinstance(data, list):
        return "[" + ", ".join(map(literal, data)) + "]"
    if isinstance(data, dict):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in data.items()) + "}"
    return repr(data)


def python(call: Call) -> str:
    return f"{call[0]}({', '.join(f'{name}={literal(v)}' for name, v in call[1].items())})"


def tagged(call: Call) -> str:
    return f"<function={call[0]}>{json.dumps(call[1], ensure_ascii=False)}</function>"


def nested(call: Call) -> str:
    function = {"name": call[0], "arguments": json.dumps(call[1])}
    return json.dumps({"type": "function", "function": function})


def pretty(call: Call) -> str:
    return json.dumps({"name": call[0], "parameters": call[1]}, indent=4, ensure_ascii=True)


FORMS: dict[str, Write] = {
    "json": separate(_json(), "; "),
    "json, arguments": separate(_json("arguments"), "\n"),
    "json, type": separate(_json(type="function"), ""),
    "json, pretty": separate(pretty, ",\n"),
    "json, nested": separate(nested, ";"),
    "json list": grouped(_json("arguments"), "[", ", ", "]"),
    "python": grouped(python, "[", ", ", "]"),
    "function": separate(tagged, ""),
    "function, lines": separate(tagged, "\n"),
    "tag, json": grouped(_json(), "<|python_tag|>", "; ", ""),
    "tag, json, end": grouped(_json(), "<|python_tag|>", ";", "<|eom_id|>"),
    "tag, calls": grouped(python, "<|python_tag|>", "; ", ""),
    "tag, function": grouped(tagged, "<|python_tag|>", "", ""),
    "start, python": grouped(python, "<|python_start|>[", ", ", "]<|python_end|>"),
    "start, json": grouped(_json(), "<|python_start|>", "", "<|python_end|>"),
}


def builtin(rng: random.Random, is_tagged: bool) -> tuple[list[str], list[Call]]:
    name, query = rng.choice(BUILTIN), rng.choice(["gold price", "who is é?", "a, b (c)"])
    tag = "<|python_tag|>" if is_tagged else ""
    return ["", f'{tag}{name}.call(query="{query}")', ""], [(name, {"query": query})]


def code(rng: random.Random, tag: str, end: str) -> tuple[list[str], list[Call]]:
    source = rng.choice(CODE)
    return ["", tag + source + end, ""], [("code_interpreter", {"code": source})]


def _said(rng: random.Random, form: str) -> tuple[list[str], list[Call]]:
    if form == "builtin" or form == "tag, builtin":
        return builtin(rng, form.startswith("tag"))
    if form == "code":
        return code(rng, "<|python_tag|>", "")
    if form == "code, end":
        return code(rng, "<|python_start|>", "<|python_end|>")
    calls = calls_of(rng)
    return FORMS[form](rng, calls), calls


ALL = (*FORMS, "builtin", "tag, builtin", "code", "code, end")


def cases(n: int) -> Iterator[Case]:
    rng = random.Random(20261126)
    for i in range(n):
        whole = _whole(rng, ALL[i % len(ALL)])
        yield whole if i % 3 else _cut(rng, whole)


def _whole(rng: random.Random, form: str) -> Case:
    pieces, calls = _said(rng, form)
    before = rng.choice(BEFORE)
    # What stands after a tag without an end belongs to it.
    is_open = form.startswith(("tag", "code")) and not form.endswith("end")
    after = "" if is_open else rng.choice(AFTER)
    text, spans = before, []
    for k, piece in enumerate(pieces):
        if k % 2:
            spans.append((len(text), len(text) + len(piece)))
        text += piece
    content = ("" if before.isspace() else before) + after
    return Case(form, text + after, content, calls, spans)


def _cut(rng: random.Random, case: Case) -> Case:
    """The case, cut off somewhere inside its last call: that one is text then, those before are not."""
    start, end = case.spans[-1]
    at = rng.randrange(start + 1, end)
    kept = case.calls[: len(case.spans) - 1]
    return Case(case.form, case.text[:at], case.text[start:at], kept, case.spans, is_whole=False)
