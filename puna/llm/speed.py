"""How long steps take at the limit of this machine: what a server compares its own with."""

from __future__ import annotations

from functools import cache

from puna.bench.jobs import Limits, ModelCost
from puna.llm.memory import available_bytes
from puna.runtime.cpu import measure_limits

_SECONDS = 0.1  # for each limit; half a second in all
_READ_BYTES = 1 << 28


@cache
def machine_limits(threads: int) -> Limits:
    """The limits of this machine, measured when first asked for, which keeps all threads busy."""
    room = available_bytes()
    read_bytes = min(_READ_BYTES, (room or _READ_BYTES) // 4)
    return Limits(**measure_limits(threads, seconds=_SECONDS, read_bytes=read_bytes))


class Speed:
    """Of one model; `cost` is None where nobody knows the limits of the device that it runs on."""

    def __init__(self, cost: ModelCost | None, threads: int) -> None:
        self._cost = cost
        self._threads = threads
        self.limits: Limits | None = None  # once measured

    def measure(self) -> None:
        """Measure the machine's limits, for models that never did so on as many threads."""
        if self._cost is not None:
            self.limits = machine_limits(self._threads)

    def least_seconds(self, n_steps: int, n_tokens: int, n_outputs: int) -> float | None:
        """What steps that computed `n_tokens`, and logits for `n_outputs`, take at the limits.

        Steps read all weights; reading keys and values is not counted, so that it is never too much. None
        where the limits are not known.
        """
        if self._cost is None or self.limits is None:
            return None
        work = self._cost.steps(n_steps, n_tokens, n_outputs)
        return max(work.read_seconds(self.limits), work.multiply_seconds(self.limits))
