"""Lists whose items must differ, held to it while they are written: no grammar can remember them.

A reader follows the JSON text of an answer byte by byte, and says which tokens would complete an item that
the list has already, or where items are few and listed, lead to none that is left. Items are compared as
values: 1 is 1.0, and objects do not depend on the order of their members. The text is what llguidance allows:
JSON without escapes \\u, so that every string is written in one way.

Reading is only for the lists that a schema names (text/schema/places.py); elsewhere nothing is barred.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.text.schema.places import Place

_SPACE = b" \t\r\n"
_ENDS = frozenset(b",]}" + _SPACE)  # behind numbers and names


@dataclass(frozen=True)
class _Open:
    """A list or an object that is being written."""

    place: Place
    is_list: bool
    start: int  # where it begins in the text
    n_items: int = 0
    seen: frozenset[Any] = frozenset()  # items of a unique list
    texts: frozenset[str] = frozenset()  # as they are written, where they are few and listed
    name: str | None = None  # of the member whose value is next

    @property
    def has_zero(self) -> bool:
        return _comparable(0) in self.seen


@dataclass(frozen=True)
class Reading:
    """How far a JSON text was read. Never changed: what comes next is another one."""

    root: Place
    text: bytes = b""  # since the outermost unique list began, else less
    open: tuple[_Open, ...] = ()
    value: int | None = None  # where the value begins that is being read, a string, number or name
    in_string: bool = False
    escaped: bool = False
    n_unique: int = 0  # lists around that are unique

    def after(self, piece: bytes) -> Reading | None:
        """Read on; None where an item of a unique list would come a second time."""
        reading: Reading | None = self
        for byte in piece:
            assert reading is not None
            reading = reading._after(byte)
            if reading is None:
                return None
        return reading

    def _after(self, byte: int) -> Reading | None:
        if self.in_string:
            return self._in_string(byte)
        if self.value is not None and byte in _ENDS:  # a number or a name is complete
            ended = self._completed(self.value)
            return None if ended is None else ended._after(byte)
        text = self.text + bytes((byte,))
        if self.value is not None:
            return replace(self, text=text)
        if byte in b"[{":
            return self._opened(byte == ord("["), text)
        if byte in b"]}":
            return self._closed(text)
        if byte in b",:" or byte in _SPACE:
            return replace(self, text=text)
        return replace(self, text=text, value=len(self.text), in_string=byte == ord('"'))

    def _in_string(self, byte: int) -> Reading | None:
        text = self.text + bytes((byte,))
        if self.escaped:
            return replace(self, text=text, escaped=False)
        if byte == ord("\\"):
            return replace(self, text=text, escaped=True)
        if byte != ord('"'):
            return replace(self, text=text)
        assert self.value is not None
        return replace(self, text=text, in_string=False)._completed(self.value)

    def _opened(self, is_list: bool, text: bytes) -> Reading:
        place = self._place()
        more = is_list and place.is_unique
        opened = _Open(place, is_list, len(self.text))
        return replace(self, text=text, open=(*self.open, opened), n_unique=self.n_unique + more)

    def _closed(self, text: bytes) -> Reading | None:
        closed = self.open[-1]
        unique = self.n_unique - (closed.is_list and closed.place.is_unique)
        return replace(self, text=text, open=self.open[:-1], n_unique=unique)._completed(closed.start)

    def _place(self) -> Place:
        """Where the next value stands."""
        if not self.open:
            return self.root
        around = self.open[-1]
        return (
            around.place.item(around.n_items) if around.is_list else around.place.property(around.name or "")
        )

    def _completed(self, start: int) -> Reading | None:
        """A value that begins at `start` is whole now."""
        if not self.open:
            return replace(self, value=None)
        around = self.open[-1]
        written = self.text[start:]
        if not around.is_list:
            is_name = around.name is None
            around = replace(around, name=json.loads(written) if is_name else None)
        elif around.place.is_unique:
            item = _comparable(json.loads(written))
            if item in around.seen:
                return None
            seen, texts = around.seen | {item}, around.texts | {written.decode()}
            around = replace(around, n_items=around.n_items + 1, seen=seen, texts=texts)
        else:
            around = replace(around, n_items=around.n_items + 1)
        text = self.text if self.n_unique else b""
        moved = around if self.n_unique else replace(around, start=0)
        return replace(self, text=text, open=(*self.open[:-1], moved), value=None)

    @property
    def at(self) -> Reading:
        """The JSON text in which it is."""
        return self

    @property
    def unique(self) -> _Open | None:
        """The innermost unique list that has items, or is of a few that are listed."""
        if not self.n_unique:
            return None
        found = (o for o in reversed(self.open) if o.is_list and o.place.is_unique)
        return next((o for o in found if o.seen or o.place.texts), None)

    @property
    def is_stuck(self) -> bool:
        """Whether the item can only be one that the list has: no whole number goes on after a 0."""
        around = self.open[-1] if self.open else None
        if around is None or not around.is_list or not around.has_zero:
            return False
        is_zero = self.value is not None and self.item in (b"0", b"-0")
        return is_zero and not around.place.item(around.n_items).has_fractions

    @property
    def left(self) -> list[bytes] | None:
        """What the item being written may be, where the list is of a few: none of those it has already."""
        around = self.open[-1] if self.open else None
        if around is None or not around.is_list or around.place.texts is None:
            return None
        return [text.encode() for text in around.place.texts - around.texts]

    @property
    def item(self) -> bytes:
        """What was written of the item so far."""
        return b"" if self.value is None else self.text[self.value :]


@dataclass(frozen=True)
class Calls:
    """How far a text was read in which objects stand behind some openings, as arguments of calls do."""

    places: Mapping[bytes, Place]  # of the objects, by their openings
    end: bytes = b""  # of what was read outside of them
    at: Reading | None = None  # inside of one

    def after(self, piece: bytes) -> Calls | None:
        """Read on; None where an item of a unique list would come a second time."""
        calls: Calls | None = self
        for byte in piece:
            assert calls is not None
            calls = calls._outside(byte) if calls.at is None else calls._inside(calls.at, byte)
            if calls is None:
                return None
        return calls

    def _outside(self, byte: int) -> Calls:
        longest = max(map(len, self.places))
        end = (self.end + bytes((byte,)))[-longest:]
        found = next((place for opening, place in self.places.items() if end.endswith(opening)), None)
        return replace(self, end=end) if found is None else Calls(self.places, at=Reading(found))

    def _inside(self, at: Reading, byte: int) -> Calls | None:
        after = at.after(bytes((byte,)))
        if after is None:
            return None
        return Calls(self.places, at=None if at.open and not after.open else after)


def _comparable(value: Any) -> Any:
    """A value that equals another one as JSON Schema has it, and can be kept in a set."""
    if isinstance(value, list):
        return ("list", *map(_comparable, value))
    if isinstance(value, dict):
        return ("object", frozenset((name, _comparable(item)) for name, item in value.items()))
    return (type(value) is bool, value)


Text = Reading | Calls


class Repeats:
    """Which tokens repeat an item. `tokens` are the bytes of each token of a vocabulary.

    Takes some tenths of a second to make: which tokens can complete an item where is found out once.
    """

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self._tokens = tokens
        self._with_brackets = self._mask(rb"[\]}]")
        self._with_quotes = self._mask(rb'"')
        # Inside of a number: those that complete it, or that it can end with.
        self._with_ends = self._mask(rb"[,\]} \t\r\n]|0$")
        # Behind another item: those that begin one, and complete it.
        self._with_whole_items = self._mask(rb'[^, \t\r\n].*[",\]} \t\r\n]|0$')
        # Inside of a text that no item begins with: those that complete it and one more.
        self._with_more_items = self._mask(rb'".*[^, \t\r\n].*[",\]} \t\r\n]')

    def after(self, reading: Text, token_id: int) -> Text | None:
        """Read a token; None for one that `bar` takes out."""
        piece, at = self._tokens[token_id], reading.at
        after = reading.after(piece) if at is None or _leads_on(at, piece, at.left) else None
        return None if after is None or (after.at is not None and after.at.is_stuck) else after

    def bar(self, reading: Text, mask: NDArray[np.uint8]) -> None:
        """Take tokens out of a mask that would repeat an item, or lead to none that is left."""
        at = reading.at
        unique = None if at is None else at.unique
        if at is None or unique is None:
            return
        is_listed = at.left is not None
        candidates = mask if is_listed else mask & self._completing(at, unique)[: len(mask)]
        for token_id in np.flatnonzero(np.unpackbits(candidates, bitorder="little")).tolist():
            if self.after(reading, token_id) is None:
                mask[token_id >> 3] &= ~np.uint8(1 << (token_id & 7))

    def _completing(self, reading: Reading, unique: _Open) -> NDArray[np.uint8]:
        """A mask of the tokens that may complete an item at this place."""
        if reading.open[-1] is not unique:
            return self._with_brackets
        if reading.value is None:
            return self._with_whole_items
        if not reading.in_string:
            return self._with_ends
        written = reading.item.decode("utf-8", "ignore")
        is_like_one = any(text.startswith(written) for text in unique.texts)
        return self._with_quotes if is_like_one else self._with_more_items

    def _mask(self, pattern: bytes) -> NDArray[np.uint8]:
        found = re.compile(pattern, re.DOTALL)
        bits = np.array([found.search(piece) is not None for piece in self._tokens], np.uint8)
        packed = np.packbits(bits, bitorder="little")
        return np.concatenate([packed, np.zeros(8, np.uint8)])  # masks end at whole words


def _leads_on(reading: Reading, piece: bytes, left: Sequence[bytes] | None) -> bool:
    """Whether an item that is left begins as this one does with the piece."""
    written = reading.item + piece if reading.value is not None else piece.lstrip(b", \t\r\n")
    if left is None or not written or written[:1] in b"]}[":
        return True
    return any(text.startswith(written) or written.startswith(text) for text in left)
