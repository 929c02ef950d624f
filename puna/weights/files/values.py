"""GGUF metadata values: encoded as the file holds them, decoded only when asked.

A vocabulary has 50,000 to 300,000 strings. Opening a file has to find where they end, but should cost neither
the time nor the memory of making them: a Value keeps a view of its bytes. Layout: the GGUF specification.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile, BadValue, Unsupported


class ValueType(IntEnum):
    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# Little-endian codes, understood by struct and numpy alike.
_CODES: Mapping[ValueType, str] = {
    ValueType.UINT8: "<B", ValueType.INT8: "<b", ValueType.UINT16: "<H", ValueType.INT16: "<h",
    ValueType.UINT32: "<I", ValueType.INT32: "<i", ValueType.FLOAT32: "<f", ValueType.BOOL: "<?",
    ValueType.UINT64: "<Q", ValueType.INT64: "<q", ValueType.FLOAT64: "<d",
}  # fmt: skip
_ARRAY_HEAD = struct.Struct("<IQ")  # type and number of items
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Value:
    """One metadata value: its type, and the bytes that follow the type in the file, known to be complete."""

    type: ValueType
    payload: bytes | memoryview

    @classmethod
    def of(cls, value_type: ValueType, value: bool | int | float | str) -> Value:
        """Encode a scalar or a string; raises BadValue where it does not fit the type."""
        return cls(value_type, _encode(value_type, value))

    @classmethod
    def array(cls, item_type: ValueType, items: Sequence[bool | int | float | str]) -> Value:
        """Encode an array; raises BadValue where an item does not fit the type."""
        head = _ARRAY_HEAD.pack(item_type, len(items))
        return cls(ValueType.ARRAY, head + b"".join(_encode(item_type, item) for item in items))

    @property
    def item_type(self) -> ValueType | None:
        """The type of an array's items; None for anything else."""
        return ValueType(_ARRAY_HEAD.unpack_from(self.payload)[0]) if self.type is ValueType.ARRAY else None

    def decode(self, key: str) -> Any:
        """A Python value; arrays become lists, made anew: a vocabulary's takes milliseconds and megabytes.

        Raises BadFile naming `key` for text that is not UTF-8 and for booleans other than 0 and 1.
        """
        if self.type is ValueType.STRING:
            return _text(bytes(self.payload[_LENGTH.size :]), key)
        if self.type is not ValueType.ARRAY:
            if self.type is ValueType.BOOL:
                _check_booleans(np.frombuffer(self.payload, np.uint8), key)
            return struct.unpack(_CODES[self.type], self.payload)[0]
        item_type, count = _ARRAY_HEAD.unpack_from(self.payload)
        items = self.payload[_ARRAY_HEAD.size :]
        if item_type == ValueType.STRING:
            return _decode_strings(items, count, key)
        if item_type == ValueType.BOOL:
            _check_booleans(np.frombuffer(items, np.uint8), key)
        decoded: list[Any] = np.frombuffer(items, _CODES[ValueType(item_type)]).tolist()
        return decoded

    def joined(self, key: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """See Metadata.joined."""
        if self.item_type is not ValueType.STRING:
            raise BadFile(
                f"metadata {key!r} must be an array of strings, it is {self.type.name}; damaged file?"
            )
        _, count = _ARRAY_HEAD.unpack_from(self.payload)
        items = np.frombuffer(self.payload, np.uint8)[_ARRAY_HEAD.size :]
        starts = string_starts(items, count, key)
        is_text = np.ones(items.size, np.bool_)
        for i in range(_LENGTH.size):
            is_text[starts[:-1] + i] = False
        text = items[is_text]
        starts -= np.arange(count + 1) * _LENGTH.size
        _text(text.tobytes(), key)
        # The whole is UTF-8; so are its parts if none begins inside a character.
        begins = starts[:-1][starts[:-1] < text.size]
        if (text[begins] & 0xC0 == 0x80).any():
            raise BadFile(f"metadata {key!r} must be UTF-8 text, found half a character; damaged file?")
        return text, starts


class Metadata(Mapping[str, Any]):
    """Metadata by key, decoded anew at each access: keep what is read twice. `encoded` has it as stored."""

    def __init__(self, encoded: Mapping[str, Value]) -> None:
        self.encoded = encoded

    def joined(self, key: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """An array of strings with no object for each: their UTF-8, and where each starts in it [count + 1].

        Raises KeyError, and BadFile for a value that is no array of strings or is not UTF-8.
        """
        return self.encoded[key].joined(key)

    def __getitem__(self, key: str) -> Any:
        return self.encoded[key].decode(key)

    def __contains__(self, key: object) -> bool:
        return key in self.encoded

    def __iter__(self) -> Iterator[str]:
        return iter(self.encoded)

    def __len__(self) -> int:
        return len(self.encoded)


def _encode(value_type: ValueType, value: bool | int | float | str) -> bytes:
    if value_type is ValueType.STRING and isinstance(value, str):
        text = value.encode()
        return _LENGTH.pack(len(text)) + text
    if value_type in _CODES:
        try:
            return struct.pack(_CODES[value_type], value)
        except (struct.error, OverflowError):
            pass
    raise BadValue(f"a metadata value of type {value_type.name} cannot hold {value!r}")


def _text(raw: bytes, key: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadFile(f"metadata {key!r} must be UTF-8 text, found {raw[error.start :][:8]!r}") from None


def _check_booleans(raw: NDArray[np.uint8], key: str) -> None:
    if raw.size and raw.max() > 1:
        raise BadFile(f"metadata {key!r} must hold booleans of 0 or 1, found {raw.max()}")


def _decode_strings(items: bytes | memoryview, count: int, key: str) -> list[str]:
    raw = bytes(items)
    starts = string_starts(np.frombuffer(raw, np.uint8), count, key)
    zero_separated = _with_zeros_for_lengths(raw, starts)
    if zero_separated.count(0) == count:
        try:
            return zero_separated.decode().split("\0")[1:]
        except UnicodeDecodeError:
            pass  # find out which string it is
    return [_text(raw[a + 8 : b], f"{key}[{i}]") for i, (a, b) in enumerate(pairwise(starts.tolist()))]


def _with_zeros_for_lengths(raw: bytes, starts: NDArray[np.int64]) -> bytes:
    """The strings, each behind a zero byte: to decode and split at once takes half the time of one by one."""
    data = np.frombuffer(raw, np.uint8).copy()
    data[starts[:-1]] = 0
    keep = np.ones(data.size, np.bool_)
    keep[(starts[:-1, None] + np.arange(1, 8)).reshape(-1)] = False
    return data[keep].tobytes()


def read_value(data: NDArray[np.uint8], at: int, value_type: int, key: str) -> Value:
    """The value of type `value_type` whose bytes start at `data[at]`; raises BadFile naming `key`.

    Nothing is decoded, and nothing is allocated before it is known to lie inside `data`.
    """
    kind = _known_type(value_type, key)
    if kind is ValueType.ARRAY:
        size = _ARRAY_HEAD.size + _items_size(data, at, key)
    elif kind is ValueType.STRING:
        _check_inside(data, at, _LENGTH.size, key)
        size = _LENGTH.size + _LENGTH.unpack_from(data.data, at)[0]
    else:
        size = struct.calcsize(_CODES[kind])
    _check_inside(data, at, size, key)
    return Value(kind, data[at : at + size].data)


def _known_type(value_type: int, key: str) -> ValueType:
    if value_type > ValueType.FLOAT64:
        raise BadFile(
            f"metadata {key!r} has type number {value_type}, the known ones are 0 to 12; damaged file?"
        )
    return ValueType(value_type)


def _check_inside(data: NDArray[np.uint8], at: int, size: int, key: str) -> None:
    if size > data.size - at:
        raise BadFile(
            f"metadata {key!r} needs {size:,} bytes at byte {at:,} and the file ends at {data.size:,}; "
            "it is truncated or damaged, get it again"
        )


def _items_size(data: NDArray[np.uint8], at: int, key: str) -> int:
    _check_inside(data, at, _ARRAY_HEAD.size, key)
    type_number, count = _ARRAY_HEAD.unpack_from(data.data, at)
    item_type = _known_type(type_number, key)
    at += _ARRAY_HEAD.size
    if item_type is ValueType.ARRAY:
        raise Unsupported(f"metadata {key!r} is an array of arrays, which no Llama file has; damaged file?")
    if item_type is not ValueType.STRING:
        return int(count * struct.calcsize(_CODES[item_type]))
    _check_inside(data, at, count * _LENGTH.size, key)
    return int(string_starts(data[at:], count, key)[count])


_WINDOW = 1 << 16  # bytes looked at together
_STEPS = 1 << 10  # strings walked one by one where looking together does not pay


def string_starts(data: NDArray[np.uint8], count: int, key: str) -> NDArray[np.int64]:
    """Where each of `count` strings (8 bytes of length, then text) starts, and the last one ends [count + 1].

    Lengths form a chain that Python would have to walk link by link: 100 ns each, 50 ms for the vocabulary of
    Llama 3. Most strings are shorter than 256 bytes, so their lengths end in seven zero bytes: find all such
    places of a window at once, and keep the leading ones that point to each other. What remains is walked.
    Raises BadFile naming `key` where a string leaves `data`.
    """
    starts = np.empty(count + 1, np.int64)
    starts[0] = n = 0
    while n < count:
        at = int(starts[n])
        ends = _short_string_ends(data[at : at + _WINDOW])[: count - n]
        if ends.size and at + int(ends[-1]) > data.size:
            ends = ends[: np.searchsorted(ends, data.size - at, side="right")]
        starts[n + 1 : n + 1 + ends.size] = at + ends
        n += ends.size
        if ends.size < _STEPS:
            n = _walk(data, starts, n, min(n + _STEPS, count), key)
    return starts


def _short_string_ends(window: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Ends of the leading strings of `window` that are shorter than 256 bytes; the last may lie outside."""
    zero = window == 0
    zeros_2 = zero[:-1] & zero[1:]
    zeros_4 = zeros_2[:-2] & zeros_2[2:]
    zeros_7 = zeros_4[:-3] & zeros_4[3:]
    starts = np.flatnonzero(zeros_7[1:])
    if not starts.size or starts[0] != 0:
        return starts[:0]
    ends = starts + 8 + window[starts]
    chained = ends[:-1] == starts[1:]
    n_chained = ends.size if chained.all() else int(chained.argmin()) + 1
    return ends[:n_chained]


def _walk(data: NDArray[np.uint8], starts: NDArray[np.int64], n: int, stop: int, key: str) -> int:
    unpack: Callable[..., tuple[int]] = _LENGTH.unpack_from
    at, size = int(starts[n]), data.size
    raw = data.data
    while n < stop:
        end = at + 8 + unpack(raw, at)[0] if at + 8 <= size else size + 1
        if end > size:
            raise BadFile(
                f"string {n:,} of metadata {key!r} ends beyond the file; it is truncated or damaged"
            )
        n += 1
        starts[n] = at = end
    return n
