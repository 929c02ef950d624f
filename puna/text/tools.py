"""Tool calls in what a model says, in every form that a Llama was trained on.

    {"name": "f", "parameters": {…}}              3.1; also "arguments", lists, OpenAI's nested "function"
    [f(a="x"), g()]                               3.2, 3.3, 4
    <function=f>{…}</function>                    3.1's and 4's custom format
    <|python_tag|>…, <|python_start|>…<|python_end|>   any of these, or Python for the code interpreter
    brave_search.call(query="…")                  3.1's builtin tools, with or without the tag

Nothing is a call unless it names a tool that exists, so answers in JSON, lists and prose stay text; so does a
call that is malformed or cut off, with nothing lost. Knows nothing of tokens: it reads text, in any pieces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from puna.text.literals import (
    NotACall,
    Wait,
    after,
    check_first_key,
    end_of_group,
    json_value,
)
from puna.text.tool_call import (
    BUILTIN_TOOLS,
    CODE_INTERPRETER,
    ToolCall,
    call_of,
    call_with_keywords,
    calls_of_json,
    tool_names,
)

__all__ = [
    "BUILTIN_TOOLS",
    "CODE_INTERPRETER",
    "ToolCall",
    "ToolCallParser",
    "parse_tool_calls",
    "tool_names",
]

_TAGS = ("<|python_tag|>", "<|python_start|>")
# What ends a block after a tag, be it that the tokens at an answer's end are shown as text.
_TAG_END = re.compile(r"<\|(?:python_end|eom_id|eot_id|eom|eot)\|>")
_LONGEST_END = len("<|python_end|>")
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_SEPARATORS = re.compile(r"[\s;,]*")  # between calls of one answer
_SPACE = re.compile(r"\s*")
_QUOTES = "'\""  # of Python's strings
_WINDOW = 4096  # characters in which it shows whether JSON may be a call
_JSON_VALUE = re.compile(r'\s*["{\[\d-]')  # what a list in JSON may begin with


def parse_tool_calls(
    text: str | Iterable[str], tools: Iterable[str | Mapping[str, Any]]
) -> tuple[str, list[ToolCall]]:
    """What of an answer is text, and the calls of `tools` in it, in their order.

    `text` may come in pieces; where they are cut makes no difference. White space before the first call and
    separators between calls belong to neither. Raises BadInput for tools without names.
    """
    parser = ToolCallParser(tools)
    events = []
    for piece in [text] if isinstance(text, str) else text:
        events += parser.push(piece)
    events += parser.flush()
    calls = [event for event in events if isinstance(event, ToolCall)]
    return "".join(event for event in events if isinstance(event, str)), calls


class ToolCallParser:
    """Takes an answer in pieces and gives text, as soon as it cannot belong to a call, and whole calls.

    The texts joined, and the calls, do not depend on the pieces. `tools` are those of `tool_names`.
    """

    def __init__(self, tools: Iterable[str | Mapping[str, Any]]) -> None:
        self._names = tool_names(tools)
        builtin = sorted(self._names.intersection(BUILTIN_TOOLS[:3]))
        self._starts = [*_TAGS, _FUNCTION, *(f"{name}.call(" for name in builtin)]
        patterns = [*map(re.escape, (*_TAGS, _FUNCTION)), r"[\[{]"]
        patterns += [rf"(?<![\w.]){re.escape(name)}\.call\(" for name in builtin]
        self._start = re.compile("|".join(patterns))
        self._longest = max(map(len, self._starts))
        self._text = ""  # not given out yet
        self._last = ""  # the character before it
        self._between = True  # before any text, or after a call
        self._had_call = False
        self._skipping = ""  # quotes of strings inside brackets that are no call: nothing in them is one
        self._restart()

    def _restart(self) -> None:
        """Forget the group of brackets that was being read."""
        self._stack: list[str] = []  # what is open of it
        self._read = 0  # how far _text was read
        self._end: int | None = None  # where it ends

    def push(self, text: str) -> list[str | ToolCall]:
        """Take the next piece; gives the text and the calls that are certain by now."""
        self._text += text
        return self._take(ended=False)

    def flush(self) -> list[str | ToolCall]:
        """The answer has ended: gives the rest."""
        events = self._take(ended=True)
        if not (self._had_call and self._between and self._is_gap(len(self._text))):
            self._give(events, len(self._text))  # else what is left only separated calls
        return _joined(events)

    def _take(self, *, ended: bool) -> list[str | ToolCall]:
        events: list[str | ToolCall] = []
        try:
            while self._text:
                self._step(events, ended)
        except Wait:
            pass
        return _joined(events)

    def _step(self, events: list[str | ToolCall], ended: bool) -> None:
        """Give out one call, or some text; raises Wait where neither can be said yet."""
        if self._skipping:
            self._skip(events)
            return
        found = self._start.search(self._text)
        if found is None:
            self._give(events, len(self._text) - self._held())
            raise Wait
        start = found.start()
        if start and not (self._between and self._is_gap(start)):
            self._give(events, start)
            start = 0
        try:
            end, calls = self._calls_at(start, found.group(), ended)
        except NotACall:
            self._refuse(events, start, found.group())
            return
        events += calls
        self._cut(end)
        self._between = self._had_call = True

    def _is_gap(self, n: int) -> bool:
        """Whether the first `n` characters only separate what is before from a call."""
        gap = self._text[:n]
        return bool(_SEPARATORS.fullmatch(gap)) if self._had_call else gap.isspace()

    def _held(self) -> int:
        """How many characters at the end may belong to a call, with the gap before it."""
        text = self._text
        longest = min(self._longest - 1, len(text))
        endings = (n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in self._starts))
        n = next(endings, 0)
        return len(text) if self._between and self._is_gap(len(text) - n) else n

    def _give(self, events: list[str | ToolCall], n: int) -> None:
        if n:
            events.append(self._text[:n])
            self._cut(n)
            self._between = False

    def _cut(self, n: int) -> None:
        if n:
            self._last = self._text[n - 1]
        self._text = self._text[n:]
        self._restart()

    def _refuse(self, events: list[str | ToolCall], start: int, found: str) -> None:
        """What begins at `start` is text: all of a JSON value or of a call cut off, else one character.

        What stands inside such a call may be anybody's words; they must not become calls by its end missing.
        """
        rest = self._text[start + 1 :]
        n = 1
        if (found == "{" and rest.lstrip()[:1] == '"') or (found == "[" and _JSON_VALUE.match(rest)):
            n, self._skipping = 0, '"'
        elif found == "[" and self._begins_call(start + 1):
            n, self._skipping = 0, _QUOTES
        elif found.endswith("("):
            n, self._skipping = len(found) - 1, _QUOTES
        elif found in _TAGS and (opening := self._begins_call(start + len(found))):
            n, self._skipping = opening - start, _QUOTES
        self._give(events, start + n)
        self._restart()

    def _begins_call(self, at: int) -> int | None:
        """Where the bracket opens of a call f(… that begins at a place, or after white space there."""
        at = after(_SPACE, self._text, at)
        name = self._name_at(self._text, at)
        return None if name is None else at + len(name)

    def _name_at(self, text: str, at: int) -> str | None:
        """The longest name of a tool that is called at a place."""
        return max((n for n in self._names if text.startswith(f"{n}(", at)), key=len, default=None)

    def _skip(self, events: list[str | ToolCall]) -> None:
        end = self._end_of(0, self._skipping)
        if end is None:
            stack = self._stack
            self._give(events, self._read)
            self._stack = stack
            raise Wait
        self._skipping = ""
        self._give(events, end)

    def _end_of(self, start: int, quotes: str) -> int | None:
        """Where the group of brackets ends that begins at `start`; reads each character once."""
        if self._end is None:
            at = max(self._read, start)
            self._end, self._read = end_of_group(self._text, at, self._stack, quotes)
        return self._end

    # Calls that begin at a place in the text: their end and what they are, Wait, or NotACall.

    def _calls_at(self, start: int, found: str, ended: bool) -> tuple[int, list[ToolCall]]:
        try:
            if found in _TAGS:
                return self._tagged(start, len(found), ended)
            if found == _FUNCTION:
                return self._function(start, ended)
            if found == "{":
                return self._json(start)
            if found == "[":
                return self._list(start)
            if start == 0 and re.fullmatch(r"[\w.]", self._last):  # the end of a longer name
                raise NotACall
            return self._called(start, found.removesuffix(".call("), ".call")
        except Wait:
            if ended:
                raise NotACall from None
            raise

    def _closed(self, start: int, quotes: str) -> int:
        end = self._end_of(start, quotes)
        if end is None:
            raise Wait
        return end

    def _json(self, start: int) -> tuple[int, list[ToolCall]]:
        check_first_key(self._text[start + 1 : start + _WINDOW], self._names)
        end = self._closed(start, '"')
        return end, calls_of_json(json_value(self._text[start:end]), self._names)

    def _list(self, start: int) -> tuple[int, list[ToolCall]]:
        rest = self._text[start + 1 : start + _WINDOW].lstrip()
        if not rest:
            raise Wait
        if rest[0] == "{":
            check_first_key(rest[1:], self._names)
            end = self._closed(start, '"')
            return end, calls_of_json(json_value(self._text[start:end]), self._names)
        if not any(rest.startswith(f"{name}(") for name in self._names):
            if any(f"{name}(".startswith(rest) for name in self._names):
                raise Wait
            raise NotACall
        end = self._closed(start, _QUOTES)
        return end, self._sequence(self._text[start + 1 : end - 1])

    def _function(self, start: int, ended: bool) -> tuple[int, list[ToolCall]]:
        body = start + len(_FUNCTION)
        close = self._text.find(">", body)
        name = self._text[body : close if close >= 0 else None]
        if close < 0 and any(known.startswith(name) for known in self._names):
            raise Wait
        if name not in self._names:
            raise NotACall
        at = after(_SPACE, self._text, close + 1)
        if self._text[at : at + 1] == "{":
            end = self._closed(at, '"')
            arguments = json_value(self._text[at:end])
            return self._function_end(end, ended), [call_of(name, arguments, self._names)]
        if self._text.startswith(_FUNCTION_END, at):
            return at + len(_FUNCTION_END), [call_of(name, {}, self._names)]
        if _FUNCTION_END.startswith(self._text[at:]):
            raise Wait
        raise NotACall

    def _function_end(self, at: int, ended: bool) -> int:
        """Past "</function>", which models forget."""
        there = after(_SPACE, self._text, at)
        if self._text.startswith(_FUNCTION_END, there):
            return there + len(_FUNCTION_END)
        if not ended and _FUNCTION_END.startswith(self._text[there:]):
            raise Wait
        return at

    def _called(self, start: int, name: str, method: str) -> tuple[int, list[ToolCall]]:
        opening = start + len(name + method)
        end = self._closed(opening, _QUOTES)
        return end, [call_with_keywords(name, self._text[opening + 1 : end - 1], self._names)]

    def _tagged(self, start: int, length: int, ended: bool) -> tuple[int, list[ToolCall]]:
        """All after a tag, which is known at its end: calls, or else code."""
        body = start + length
        close = _TAG_END.search(self._text, max(body, self._read - _LONGEST_END))
        if close is None and not ended:
            self._read = len(self._text)
            raise Wait
        block = self._text[body : close.start() if close else None]
        end = close.end() if close else len(self._text)
        try:
            return end, self._sequence(block, or_list=True)
        except NotACall:
            if not self._is_code(block):
                return self._call_after_tag(body, ended)
            return end, [call_of(CODE_INTERPRETER, {"code": block}, self._names)]

    def _is_code(self, block: str) -> bool:
        """Whether that is Python for the interpreter, and no call in JSON that is malformed or cut off."""
        if CODE_INTERPRETER not in self._names or not block.strip():
            return False
        if block.lstrip()[0] != "{":
            return True
        try:
            check_first_key(block.lstrip()[1:_WINDOW], self._names)
        except NotACall:
            return True
        except Wait:
            pass
        return False

    def _call_after_tag(self, body: int, ended: bool) -> tuple[int, list[ToolCall]]:
        """A call after a tag that something else follows."""
        found = self._start.match(self._text, after(_SPACE, self._text, body))
        if found is None or found.group() in _TAGS:
            raise NotACall
        self._restart()
        try:
            return self._calls_at(found.start(), found.group(), ended)
        finally:
            self._restart()

    def _sequence(self, text: str, *, or_list: bool = False) -> list[ToolCall]:
        """Calls f(…) with separators between them, and with `or_list` calls of any form; nothing else."""
        calls: list[ToolCall] = []
        parser = ToolCallParser(self._names) if or_list else None
        at = after(_SEPARATORS, text, 0)
        while at < len(text):
            name = self._name_at(text, at)
            if name is not None:
                end, _ = end_of_group(text, at + len(name), [], _QUOTES)
                if end is None:
                    raise NotACall
                calls.append(call_with_keywords(name, text[at + len(name) + 1 : end - 1], self._names))
            elif parser is not None and (found := self._start.match(text, at)) and found.group() not in _TAGS:
                parser._text = text
                parser._restart()
                end, more = parser._calls_at(at, found.group(), True)
                calls += more
            else:
                raise NotACall
            at = after(_SEPARATORS, text, end)
        if not calls:
            raise NotACall
        return calls


def _joined(events: list[str | ToolCall]) -> list[str | ToolCall]:
    """Neighbouring texts as one."""
    joined: list[str | ToolCall] = []
    for event in events:
        if isinstance(event, str) and joined and isinstance(joined[-1], str):
            joined[-1] += event
        else:
            joined.append(event)
    return joined
