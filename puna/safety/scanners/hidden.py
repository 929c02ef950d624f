"""Characters that people do not see and models read.

Tags and variation selectors can carry whole instructions (each tag is an ASCII character, each of 256
selectors a byte), zero-width characters split words that filters look for, marks of direction show a line in
another order than it has (CVE-2021-42574, "Trojan Source"). Each also has an honest use, and those are left
alone: emoji sequences, flags of regions, joiners between letters that need them, marks of direction in lines
of Arabic or Hebrew, one byte order mark at the start, one soft hyphen within a word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import groupby

from puna.safety.scanners import characters as ch
from puna.safety.scanners.finding import Finding

KIND = "hidden"
# black flag, the code of a region in tags (gbsct: Scotland), end of tags (UTS #51, annex C)
_FLAG = re.compile(
    "\U0001f3f4[\U000e0061-\U000e007a]{2}[\U000e0030-\U000e0039\U000e0061-\U000e007a]{1,3}\U000e007f"
)
_RANGES = (
    *((0, 8), (0xB, 0xB), (0xE, 0x1F), (0x7F, 0x9F)),  # controls but tab, line feed, form feed, return
    *((0xD800, 0xDFFF), (0xE000, 0xF8FF), (0xF0000, 0x10FFFF)),  # surrogates, private use
    *((0xFDD0, 0xFDEF), *((plane + 0xFFFE, plane + 0xFFFF) for plane in range(0, 0xF0000, 0x10000))),
    *(pair for ranges in (ch.TAGS, ch.SELECTORS, ch.BIDI, ch.ZERO_WIDTH) for pair in ranges),
)
_SUSPECT = re.compile("[" + "".join(f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in _RANGES) + "]")
_OPEN, _CLOSE = "\u202a\u202b\u2066\u2067\u2068", "\u202c\u2069"
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_OVERRIDES = "\u202d\u202e"
_MARKS = "\u061c\u200e\u200f"
_SHOWN = 60  # characters of a hidden text


def scan(text: str) -> list[Finding]:
    """Runs of characters that cannot be seen and have no use where they stand, in their order."""
    suspects = [found.start() for found in _SUSPECT.finditer(text)]
    if not suspects:
        return []
    flags = {i for found in _FLAG.finditer(text) for i in range(*found.span())}
    lines = _bidi_lines(text)
    rules = [(at, rule) for at in suspects if at not in flags and (rule := _rule(text, at, lines))]
    return list(_runs(text, rules))


def _rule(text: str, at: int, lines: dict[int, bool]) -> str:
    """Why a suspect character is one; "" if it is none."""
    character = text[at]
    if ch.within(character, ch.TAGS):
        return "tag-characters"
    if ch.within(character, ch.SELECTORS):
        return "" if _varies(text, at) else "variation-selectors"
    if ch.within(character, ch.BIDI):
        return "" if lines[at] else "direction"
    if ch.within(character, ch.ZERO_WIDTH):
        return "" if _has_use(text, at) else "zero-width"
    return {"Co": "private-use", "Cc": "control"}.get(unicodedata.category(character), "no-character")


def _at(text: str, at: int) -> str:
    return text[at] if 0 <= at < len(text) else ""


def _varies(text: str, at: int) -> bool:
    return ch.may_vary(_at(text, at - 1), text[at])


def _has_use(text: str, at: int) -> bool:
    """Of a zero-width character, where it stands."""
    character, before, after = text[at], _at(text, at - 1), _at(text, at + 1)
    if character == "\ufeff":
        return at == 0
    if character == "\u00ad":
        return before.isalpha() and after.isalpha()
    if character == "\u200b":
        return ch.is_unspaced(before) and ch.is_unspaced(after)
    if character not in "\u200c\u200d":
        return False
    if ch.may_join(before):
        return after not in ("\u200c", "\u200d")
    return character == "\u200d" and _joins_emoji(text, at)


def _joins_emoji(text: str, at: int) -> bool:
    """Pictograph, perhaps with a skin tone or emoji style, joiner, pictograph."""
    before = at - 1
    if _at(text, before) == "\ufe0f":
        before -= 1
    if ch.is_skin_tone(_at(text, before)):
        return ch.is_pictograph(_at(text, at + 1))
    return ch.is_pictograph(_at(text, before)) and ch.is_pictograph(_at(text, at + 1))


def _bidi_lines(text: str) -> dict[int, bool]:
    """For every mark of direction, whether its line has a use for it."""
    found: dict[int, bool] = {}
    start = 0
    for line in text.split("\n"):
        places = [found.start() for found in _BIDI.finditer(line)]
        if places:
            mixed = ch.is_right_to_left(line.translate({ord(c): None for c in _MARKS}))
            closed = _is_balanced(line)
            for i in places:
                character = line[i]
                good = mixed and character not in _OVERRIDES and (closed or character in _MARKS)
                found[start + i] = good
        start += len(line) + 1
    return found


def _is_balanced(line: str) -> bool:
    """Whether what changes the direction is undone within the line: an isolate by an isolate's end."""
    pending: list[str] = []
    for character in line:
        if character in _OPEN or character in _OVERRIDES:
            pending.append("\u2069" if character in "\u2066\u2067\u2068" else "\u202c")
        elif character in _CLOSE and (not pending or pending.pop() != character):
            return False
    return not pending


def _runs(text: str, rules: list[tuple[int, str]]) -> Iterator[Finding]:
    """Neighbours of one rule make one finding."""
    for (rule, _), group in groupby(enumerate(rules), lambda item: (item[1][1], item[1][0] - item[0])):
        places = [at for _, (at, _) in group]
        start, end = places[0], places[-1] + 1
        yield Finding(start, end, KIND, rule, _detail(rule, text[start:end]))


def _detail(rule: str, run: str) -> str:
    codes = ", ".join(f"U+{ord(c):04X}" for c in dict.fromkeys(run[:_SHOWN]))
    what = f"{len(run)} hidden character{'s' if len(run) > 1 else ''} ({codes:.60})"
    if rule == "tag-characters":
        said = "".join(chr(ord(c) - 0xE0000) for c in run if 0xE0020 <= ord(c) <= 0xE007E)
        return f"tag characters that spell {said[:_SHOWN]!r}" if said else f"{what}, tags outside of a flag"
    if rule == "variation-selectors":
        said = bytes(map(_byte, filter(_is_byte, run))).decode("utf-8", "replace")
        return (
            f"variation selectors that carry {said[:_SHOWN]!r}" if len(run) > 1 else f"{what}, varies nothing"
        )
    if rule == "direction":
        return f"{what}, changes the order in which the line is shown"
    if rule == "control":
        name = "terminal escape" if "\x1b" in run else "control character"
        return f"{what}, {name}"
    words = {"private-use": "no public meaning", "no-character": "no character of Unicode"}
    return f"{what}, {words.get(rule, 'takes no room and joins nothing here')}"


def _is_byte(selector: str) -> bool:
    return ch.within(selector, ((0xFE00, 0xFE0F), (0xE0100, 0xE01EF)))


def _byte(selector: str) -> int:
    """Sixteen selectors, then 240: the bytes 0 to 255."""
    code = ord(selector)
    return code - 0xFE00 if code < 0xE0100 else code - 0xE0100 + 16
