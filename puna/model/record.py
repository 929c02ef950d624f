"""Typed reading of a checkpoint's untyped description (GGUF metadata, config.json, params.json).

Knows nothing of models: a missing key or a wrong type becomes one sentence that names the file's own key.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import isfinite
from numbers import Integral, Real
from typing import Any

from puna.core import BadFile, Unsupported, closest

_MAX_LAYERS = 1 << 16  # far above any model: a hostile array is not walked to its end


class Record:
    """A mapping whose values are read as a type or refused with `BadFile`.

    `what` names the mapping in messages ("GGUF metadata"). A key that is absent or null gives the default;
    without a default it is an error.
    """

    def __init__(self, fields: Mapping[str, Any], what: str) -> None:
        self.fields = fields
        self.what = what

    def has(self, key: str) -> bool:
        return self.fields.get(key) is not None

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._value(key, default, "a whole number")
        if not _is_whole(value):
            raise self._wrong(key, "a whole number", value)
        return int(value)

    def uniform(self, key: str, default: int | None = None) -> int:
        """A whole number, or an array that holds one for each layer, which must be equal."""
        value: Any = self.fields.get(key)
        if isinstance(value, str) or not hasattr(value, "__len__"):
            return self.integer(key, default)
        per_layer = list(value[:_MAX_LAYERS])
        if len(value) != len(per_layer) or not per_layer or not all(map(_is_whole, per_layer)):
            raise self._wrong(key, "a whole number, or one for each layer", value)
        if any(x != per_layer[0] for x in per_layer):
            raise Unsupported(f"{self.what} sets {key!r} per layer, and Puna runs only layers of one shape")
        return int(per_layer[0])

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default, "a number")
        if not _is_number(value):
            raise self._wrong(key, "a finite number", value)
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default, "a string")
        if not isinstance(value, str):
            raise self._wrong(key, "a string", value)
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._value(key, default, "true or false")
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        value = self._value(key, None, "a list of numbers")
        if not isinstance(value, list | tuple) or not all(map(_is_number, value)):
            raise self._wrong(key, "a list of finite numbers", value)
        return tuple(float(x) for x in value)

    def integers(self, key: str) -> tuple[int, ...]:
        value = self._value(key, None, "a list of whole numbers")
        if isinstance(value, str) or not hasattr(value, "__len__") or len(value) > _MAX_LAYERS:
            raise self._wrong(key, "a list of whole numbers", value)
        if not all(map(_is_whole, value)):
            raise self._wrong(key, "a list of whole numbers", value)
        return tuple(int(x) for x in value)

    def switch(self, key: str, default: bool) -> bool:
        """True or false, which older files spell as a number."""
        value = self._value(key, default, "true or false")
        if not isinstance(value, int):
            raise self._wrong(key, "true or false", value)
        return bool(value)

    def side(self, key: str, default: int) -> int:
        """The side of a square, given once or as [height, width]."""
        value: Any = self.fields.get(key)
        if not isinstance(value, list | tuple):
            return self.integer(key, default)
        if len(value) != 2 or not _is_whole(value[0]) or value[0] != value[1]:
            raise self._wrong(key, "one whole number, or two equal ones", value)
        return int(value[0])

    def section(self, key: str) -> Record:
        """The mapping under `key`, empty where it is absent or null."""
        value = self._value(key, {}, "a mapping")
        if not isinstance(value, Mapping):
            raise self._wrong(key, "a mapping", value)
        return Record(value, f"{key!r} of {self.what}")

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Raise `Unsupported` for a key outside `known`: it may change the model, so it is never dropped."""
        for key in self.fields:
            if key not in known and self.has(key):
                raise Unsupported(
                    f"{self.what} sets {key!r}, which Puna does not know and so cannot honour"
                    f"{closest(key, sorted(known))}; remove it if it does not change what the model computes"
                )

    def refuse_unless(self, key: str, neutral: Any, meaning: str) -> None:
        """Raise `Unsupported` where `key` is set to anything but the value that leaves a plain Llama."""
        value = self.fields.get(key, neutral)
        # an array compares to an array of truths, so look at the type first
        if value is not None and not (isinstance(value, bool | int | float | str) and value == neutral):
            raise Unsupported(
                f"{self.what} sets {key!r} to {_short(value)}, which asks for {meaning}; "
                f"Puna runs only checkpoints without it ({neutral!r})"
            )

    def _value(self, key: str, default: Any, expected: str) -> Any:
        value = self.fields.get(key)
        if value is not None:
            return value
        if default is None:
            raise BadFile(
                f"{self.what} lacks {key!r} ({expected}), which a Llama needs; "
                "convert or download the checkpoint again"
            )
        return default

    def _wrong(self, key: str, expected: str, value: Any) -> BadFile:
        return BadFile(
            f"{key!r} in {self.what} must be {expected}, found {_short(value)}; "
            "convert or download the checkpoint again"
        )


def whole(value: float, name: str) -> int:
    """A width computed from stated numbers, without its fraction; BadFile where it is absurd."""
    require(0 <= value < 2**31, name, "from 0 to 2147483647", value)
    return int(value)


def require(good: bool, name: str, expected: str, found: object) -> None:
    """Raise `BadFile` unless `good`: `name` must be `expected`."""
    if not good:
        raise BadFile(
            f"{name} must be {expected}, found {found}; "
            "the checkpoint's description is damaged or is not a Llama's"
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
