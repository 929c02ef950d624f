"""Values that models write, in JSON and in Python, read as data and never run."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Set
from typing import Any

_OPENING, _CLOSING = "([{", ")]}"
_INTERESTING = {quotes: re.compile(rf"[()\[\]{{}}{quotes}]") for quotes in ('"', "'\"")}
_IN_STRING = {quote: re.compile(rf"\\|{quote}") for quote in "'\""}
_CALL_KEYS = (
    "type",
    "name",
    "function",
    "parameters",
    "arguments",
    "id",
)  # first in a call
_FIRST_KEY = re.compile(r'\s*"(\w*)(?:(")(?:\s*:\s*"((?:[^"\\]|\\.)*)")?)?')
_JSON_NAMES = {"true": True, "false": False, "null": None}


class NotACall(Exception):
    """The text is no tool call. Never reaches a caller of the parser: such text stays text."""


class Wait(Exception):
    """What is there so far may become a tool call. Never reaches a caller of the parser either."""


def check_first_key(rest: str, names: Set[str]) -> None:
    """Raises NotACall as soon as JSON that goes on after "{" with `rest` cannot be a call of one of `names`,
    Wait before that can be said.
    """
    found = _FIRST_KEY.match(rest)
    if found is None:
        if rest.strip():
            raise NotACall
        raise Wait
    key, closed, value = found.groups()
    if not closed:
        if found.end() == len(rest) and any(name.startswith(key) for name in _CALL_KEYS):
            raise Wait
        raise NotACall
    if key not in _CALL_KEYS:
        raise NotACall
    if value is not None and (
        (key == "name" and "\\" not in value and value not in names)
        or (key == "type" and value != "function")
    ):
        raise NotACall


def end_of_group(text: str, at: int, stack: list[str], quotes: str) -> tuple[int | None, int]:
    """Where the brackets end that `stack` has open at `at`, or that open there; and how far was read.

    The end is None while the group is open. `stack` is kept between calls, so that a growing text is read
    once: brackets that are open, a quote on top while inside a string. Closing brackets are not compared
    with opening ones; who parses the group will.
    """
    while at < len(text):
        if stack and stack[-1] in quotes:
            found = _IN_STRING[stack[-1]].search(text, at)
            if found is None:
                return None, len(text)
            if found.group() == "\\":
                if found.end() == len(text):  # what it escapes is still to come
                    return None, found.start()
                at = found.end() + 1
                continue
            stack.pop()
        else:
            found = _INTERESTING[quotes].search(text, at)
            if found is None:
                return None, len(text)
            if found.group() in _CLOSING:
                stack.pop()
                if not stack:
                    return found.end(), found.end()
            else:
                stack.append(found.group())
        at = found.end()
    return None, at


def after(gap: re.Pattern[str], text: str, at: int) -> int:
    """Where `gap`, which may be empty, ends that begins at `at`."""
    found = gap.match(text, at)
    return found.end() if found else at


def json_value(text: str) -> Any:
    """The JSON value that is all of `text`; raises NotACall."""
    try:
        # Models write line breaks inside strings: strict would refuse them.
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        raise NotACall from None


def keywords(arguments: str) -> dict[str, Any]:
    """The values of `a=1, b="x"`: literals of Python, and JSON's true, false and null; raises NotACall."""
    try:
        call = ast.parse(f"_({arguments}\n)", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise NotACall from None
    if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
        raise NotACall
    values: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise NotACall
        values[keyword.arg] = _literal(keyword.value)
    return values


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in _JSON_NAMES:
        return _JSON_NAMES[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        if any(key is None for key in node.keys):
            raise NotACall
        return {
            _literal(k): _literal(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None
        }
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise NotACall from None


def plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments` where JSON can carry them (no sets, infinities, half characters); raises NotACall."""
    try:
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError):
        raise NotACall from None
    return arguments
