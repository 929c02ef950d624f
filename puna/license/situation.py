"""What somebody does with a model, who they are, and what they can show: checked when it is made."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from puna.core import BadInput, BadValue, closest
from puna.license.agreements import ACTIVITIES
from puna.license.artifacts import Artifact
from puna.license.places import region as checked_region

PURPOSES = ("research", "commercial")
_MONTH = re.compile(r"(\d{4})-(\d{2})")
_MOST_USERS = 100_000_000_000


@dataclass(frozen=True, slots=True)
class Shown:
    """A page or file where an attribution may be, and its text."""

    where: str
    text: str


@dataclass(frozen=True, slots=True)
class Situation:
    activities: frozenset[str]
    name: str | None = None  # that a model is offered under
    region: str | None = None  # domicile, or principal place of business
    mau: tuple[int, ...] = ()  # monthly active users of the licensee and of each affiliate
    month: str | None = None  # YYYY-MM in which they were counted
    mau_of: tuple[tuple[str, int], ...] = ()  # further counts, each with its own month
    shown: Shown | None = None
    target: Artifact | None = None  # the model that is trained
    is_other_target: bool = False  # and that is no Llama
    purpose: str | None = None
    is_end_user: bool = False  # got it inside an integrated end-user product
    has_licence: bool = False  # of its own from Meta
    litigates: bool = False  # has sued over intellectual property in the model or its outputs

    @property
    def is_offered(self) -> bool:
        """Whether others get at it."""
        return bool(self.activities & {"serve", "distribute", "embed"})

    @property
    def is_trained(self) -> bool:
        return bool(self.activities & {"train-on-weights", "train-on-outputs"})


def activities(texts: Iterable[str]) -> frozenset[str]:
    """Names of activities, several of them with commas between. Raises BadInput with the nearest."""
    found = [name.strip() for text in texts for name in text.split(",")]
    for name in found:
        if name not in ACTIVITIES:
            hint = closest(name, list(ACTIVITIES)) or f"; there are {', '.join(ACTIVITIES)}"
            raise BadInput(f"there is no activity {name!r:.60}{hint}")
    return frozenset(found)


def month(text: str, today: date) -> str:
    """YYYY-MM of a month that has begun. Raises BadValue."""
    match = _MONTH.fullmatch(text)
    if match is None or not 1 <= int(match[2]) <= 12 or int(match[1]) < 2000:
        raise BadValue(f"a month must be YYYY-MM, as 2024-06, got {text!r:.60}")
    if text > f"{today:%Y-%m}":
        raise BadValue(
            f"users of {text} cannot be counted yet, today is {today}; name a month that has passed"
        )
    return text


def dated_users(texts: Iterable[str], today: date) -> tuple[tuple[tuple[str, int], ...], list[str]]:
    """Counts that say their month, as 2024-03:us=400000000 -> (month, users), and the texts that say none."""
    dated, rest = [], []
    for text in texts:
        when, colon, count = text.partition(":")
        if colon:
            dated.append((month(when.strip(), today), users([count])[0]))
        else:
            rest.append(text)
    return tuple(dated), rest


def users(texts: Iterable[str]) -> tuple[int, ...]:
    """Counts of monthly active users, as 650000000, 650_000_000 or NAME=650000000. Raises BadValue."""
    found = []
    for text in texts:
        number = text.rpartition("=")[2].replace("_", "").replace(",", "").strip()
        if not re.fullmatch(r"-?\d{1,18}", number):
            raise BadValue(
                f"--mau must be a number of users, or NAME=NUMBER for an affiliate, got {text!r:.60}"
            )
        if not 0 <= int(number) <= _MOST_USERS:
            raise BadValue(f"--mau must be from 0 to {_MOST_USERS:,} users, got {int(number):,}")
        found.append(int(number))
    return tuple(found)


def place(text: str | None) -> str | None:
    return None if text is None else checked_region(text)
