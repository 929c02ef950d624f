"""This machine's limits, measured beside whatever is compared with them."""

from __future__ import annotations

from puna.bench.jobs import BenchConfig, Limits
from puna.runtime.cpu import measure_limits


class Probe:
    """Measures all limits on as many threads as the model uses; keeps every value for the report."""

    def __init__(self, config: BenchConfig, threads: int, target: str, available_bytes: int | None) -> None:
        self._seconds, self._threads, self._target = config.limit_seconds, threads, target
        self._read_bytes = min(config.read_bytes, (available_bytes or config.read_bytes) // 4)
        self.seen: list[Limits] = []

    def measure(self) -> Limits:
        limits = Limits(**measure_limits(self._threads, self._target, self._seconds, self._read_bytes))
        self.seen.append(limits)
        return limits
