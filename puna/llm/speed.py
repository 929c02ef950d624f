"""How long steps take at the limit of this machine: what a server compares its own with."""

from __future__ import annotations

import threading

from puna.bench.jobs import Limits, ModelCost
from puna.llm.memory import available_bytes
from puna.runtime.cpu import measure_limits

_ROUNDS = 2  # of which the best counts: others who use the machine only make it slower
_SECONDS = 0.05  # for each limit
_READ_BYTES = 1 << 28
_PATIENCE_S = 2.0
_lock = threading.Lock()
_known: dict[tuple[int, str], Limits] = {}  # of this machine, by the number of threads and the CPU target


def _measured(threads: int, target: str) -> Limits:
    """Keeps all threads busy for less than a second, and longer where others use the machine."""
    room = available_bytes()
    read_bytes = min(_READ_BYTES, (room or _READ_BYTES) // 4)
    found = [measure_limits(threads, target, _SECONDS, read_bytes) for _ in range(_ROUNDS)]
    return Limits(**{name: max(limits[name] for limits in found) for name in found[0]})


class Speed:
    """Of one model; `cost` is None where nobody knows the limits of the device that it runs on."""

    def __init__(self, cost: ModelCost | None, threads: int, target: str = "") -> None:
        self._cost = cost
        self._key = threads, target

    def measure(self) -> None:
        """Measure the machine's limits, once for all models that run on as many threads, later ones too.

        On a machine that is so busy that this takes seconds, it goes on in a thread.
        """
        if self._cost is not None:
            thread = threading.Thread(target=self._measure, name="puna-limits")
            thread.start()
            thread.join(_PATIENCE_S)

    def _measure(self) -> None:
        with _lock:  # one at a time, or they would measure each other
            if self._key not in _known:
                _known[self._key] = _measured(*self._key)

    @property
    def limits(self) -> Limits | None:
        """What was measured, by whichever model."""
        return None if self._cost is None else _known.get(self._key)

    def least_seconds(self, n_steps: int, n_tokens: int, n_outputs: int) -> float | None:
        """What steps that computed `n_tokens`, and logits for `n_outputs`, take at the limits.

        Steps read all weights; reading keys and values is not counted, so that it is never too much. None
        where the limits are not known.
        """
        limits = self.limits
        if self._cost is None or limits is None:
            return None
        work = self._cost.steps(n_steps, n_tokens, n_outputs)
        return max(work.read_seconds(limits), work.multiply_seconds(limits))
