"""A figure of the server: what was measured, and what it has to be."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Figure:
    name: str
    found: float
    wanted: float
    unit: str
    is_least: bool = True  # the wanted value is the least that will do; else the most

    @property
    def is_met(self) -> bool:
        return self.found >= self.wanted if self.is_least else self.found <= self.wanted

    def __str__(self) -> str:
        sign = "at least" if self.is_least else "at most"
        met = "met" if self.is_met else "MISSED"
        return f"{self.name:56} {self.found:12,.3f} {self.unit:6} {sign} {self.wanted:,g}: {met}"

    def as_json(self) -> str:
        return json.dumps({**asdict(self), "is_met": self.is_met})
