"""How fast the models of a server are: their engines' sums, looked at once a second.

Nothing is done for a token. What an engine has done between two looks is compared with what this machine
takes for it at its limit (ServedModel.least_seconds).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from time import monotonic

from puna.engine.stats import EngineStats
from puna.server.served import Models, ServedModel

EVERY_S = 1.0
_KEPT = 61  # looks: a minute


@dataclass(frozen=True, slots=True)
class Look:
    """The sums of an engine at a time."""

    at: float  # by time.monotonic()
    stats: EngineStats
    least_s: float | None  # of all steps seen so far, at the machine's limit; None where that is not known


@dataclass(frozen=True, slots=True)
class Rate:
    """Of one model over the last seconds."""

    output: float  # tokens of answers a second
    prompt: float  # tokens of prompts computed a second
    busy: float  # share of the time in which a step was running
    of_limit: float | None  # time at the machine's limit over time taken by the steps; None: not known


def _used(stats: EngineStats) -> int:
    """Tokens that steps computed to some use: all but the guesses that were wrong."""
    return stats.step_tokens - (stats.proposed_tokens - stats.accepted_tokens)


STILL = Rate(0.0, 0.0, 0.0, None)


class Rates:
    """Looks at the models that are in memory. `run` does so until it is cancelled."""

    def __init__(self, models: Models, clock: Callable[[], float] = monotonic) -> None:
        self._models = models
        self._clock = clock
        self._looks: dict[str, deque[Look]] = {}

    async def run(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(EVERY_S)

    def look(self) -> None:
        loaded = self._models.loaded()
        for name in set(self._looks) - set(loaded):
            del self._looks[name]
        for name, model in loaded.items():
            looks = self._looks.setdefault(name, deque(maxlen=_KEPT))
            stats = model.stats()
            if looks and stats.steps < looks[-1].stats.steps:
                looks.clear()  # it was loaded again
            looks.append(Look(self._clock(), stats, self._least(model, looks, stats)))

    def _least(self, model: ServedModel, looks: deque[Look], stats: EngineStats) -> float | None:
        if not looks:
            return model.speed.least_seconds(0, 0, 0)
        last = looks[-1]
        more = model.speed.least_seconds(
            stats.steps - last.stats.steps,
            _used(stats) - _used(last.stats),
            stats.generated_tokens - last.stats.generated_tokens,
        )
        return None if more is None else (last.least_s or 0.0) + more

    def least_s(self, name: str) -> float | None:
        """Seconds that all steps seen so far take at the machine's limit."""
        looks = self._looks.get(name)
        return looks[-1].least_s if looks else None

    def rate(self, name: str, seconds: float = 10.0) -> Rate:
        """Over the last `seconds`, or as long as there have been looks."""
        looks = self._looks.get(name)
        if not looks or len(looks) < 2:
            return STILL
        last = looks[-1]
        first = next(look for look in looks if look.at >= last.at - seconds or look is looks[-2])
        if first is last:
            first = looks[-2]
        took = max(last.at - first.at, 1e-9)
        worked = last.stats.step_seconds - first.stats.step_seconds
        of_limit = None
        if last.least_s is not None and first.least_s is not None and worked > 0:
            of_limit = (last.least_s - first.least_s) / worked
        return Rate(
            (last.stats.generated_tokens - first.stats.generated_tokens) / took,
            (last.stats.prefill_tokens - first.stats.prefill_tokens) / took,
            min(1.0, worked / took),
            of_limit,
        )

    def history(self, name: str) -> list[float]:
        """Tokens of answers a second, look by look, oldest first."""
        looks = list(self._looks.get(name, ()))
        return [
            (b.stats.generated_tokens - a.stats.generated_tokens) / max(b.at - a.at, 1e-9)
            for a, b in pairwise(looks)
        ]
