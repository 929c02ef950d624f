"""The operator's price list, a TOML file:

    [[price]]
    model = "llama-3.1-8b-instruct"   # as the server names it; "*" is every model without prices of its own
    input = 0.05                      # dollars for a million tokens; a text like "0.05" is the same
    cached_input = 0.01               # of prompts found in the cache; without it they cost as much as others
    output = 0.08
    from = 2026-12-01                 # first day (UTC) of these prices; without it they hold from the start

Prices are exact decimals. What a call costs is computed exactly and then rounded once, to the nearest
billionth of a dollar, halves up; sums of costs are sums of those whole numbers.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from puna.core import BadValue, UnknownOption, closest

EVERY_MODEL = "*"
_DIGITS = 9  # behind the point of a price
_UNIT = 10**6  # 1e-15 dollars in a nano-dollar
_FIELDS = ("model", "input", "cached_input", "output", "from")


@dataclass(frozen=True, slots=True)
class Price:
    """Of one model from a day on; in 1e-15 dollars a token, which is 1e-9 dollars for a million."""

    model: str
    input: int
    cached_input: int
    output: int
    since: date = date.min


@dataclass(frozen=True, slots=True)
class PriceList:
    """Without prices, everything costs nothing."""

    prices: tuple[Price, ...] = ()

    def price(self, model: str, at: datetime) -> Price | None:
        """What holds for `model` at a time: its own prices or else those of "*", latest begun."""
        day = at.astimezone(UTC).date()
        for name in (model, EVERY_MODEL):
            begun = [price for price in self.prices if price.model == name and price.since <= day]
            if begun:
                return max(begun, key=lambda price: price.since)
        return None

    def cost(self, model: str, at: datetime, n_prompt: int, n_cached: int, n_output: int) -> int:
        """Nano-dollars of a call that began at `at`. `n_cached` of the `n_prompt` tokens were in the cache.

        0 for models without a price.
        """
        assert 0 <= n_cached <= n_prompt, "cached tokens are part of the prompt"
        price = self.price(model, at)
        if price is None:
            return 0
        exact = (n_prompt - n_cached) * price.input + n_cached * price.cached_input + n_output * price.output
        return (exact + _UNIT // 2) // _UNIT


def read_prices(path: Path) -> PriceList:
    """Raises BadValue and UnknownOption with what is wrong in the file."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadValue(f"the price list {path} must be a readable TOML file: {error}") from None
    _check_names(path, content, ("price",), "table")
    entries = content.get("price", [])
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise BadValue(f"{path} must have tables [[price]] with model, input and output; found none")
    prices = tuple(_price(path, n, entry) for n, entry in enumerate(entries, start=1))
    seen: set[tuple[str, date]] = set()
    for price in prices:
        if (price.model, price.since) in seen:
            raise BadValue(f"{path} has two prices of {price.model!r} from the same day; remove one")
        seen.add((price.model, price.since))
    return PriceList(prices)


def _price(path: Path, number: int, entry: dict[str, Any]) -> Price:
    where = f"{path}: price {number}"
    _check_names(where, entry, _FIELDS, "field")
    for name in ("model", "input", "output"):
        if name not in entry:
            raise BadValue(f"{where} needs {name}")
    model = entry["model"]
    if not isinstance(model, str) or not model:
        raise BadValue(f'{where}: model must be a name or "*", found {model!r}')
    since = entry.get("from", date.min)
    if type(since) is not date:
        raise BadValue(f"{where}: from must be a day like 2026-12-01, found {since}")
    input_ = _amount(where, "input", entry["input"])
    cached = _amount(where, "cached_input", entry["cached_input"]) if "cached_input" in entry else input_
    return Price(model, input_, cached, _amount(where, "output", entry["output"]), since)


def _amount(where: str, name: str, value: Any) -> int:
    """Dollars for a million tokens -> 1e-15 dollars a token."""
    expected = f"{where}: {name} must be dollars from 0 to 1,000,000 with at most {_DIGITS} digits behind the"
    try:
        if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
            raise InvalidOperation
        amount = Decimal(value)
        if not amount.is_finite() or not 0 <= amount <= 1_000_000:
            raise InvalidOperation
        scaled = amount.scaleb(_DIGITS)
        if scaled != int(scaled):
            raise InvalidOperation
    except InvalidOperation:
        raise BadValue(f"{expected} point, found {value}") from None
    return int(scaled)


def _check_names(where: object, found: dict[str, Any], known: tuple[str, ...], what: str) -> None:
    for name in found:
        if name not in known:
            raise UnknownOption(f"{where}: there is no {what} {name!r}{closest(name, known)}")


def dollars(nano: int) -> str:
    """Exactly, with nine digits behind the point."""
    return f"{nano // 10**9}.{nano % 10**9:09d}"
