"""Limits of an accelerator, measured by torch beside whatever is compared with them."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from puna.bench.jobs import BenchConfig, Limits

_SIDE = 4096  # of the matrices: large enough for any device to be busy
_COPIES = 8  # between two looks at the clock


class TorchProbe:
    """As limits.Probe: copies memory on the device, which counts as reading and as writing, and multiplies
    square matrices."""

    def __init__(self, config: BenchConfig, device: str) -> None:
        self._seconds, self._device = config.limit_seconds, torch.device(device)
        self._source = torch.zeros(config.read_bytes, dtype=torch.uint8, device=self._device)
        self._target = torch.empty_like(self._source)
        side = min(_SIDE, 16 * int(config.read_bytes**0.5 / 16 + 1))
        self._bf16 = torch.ones((side, side), dtype=torch.bfloat16, device=self._device)
        self._int8 = self._bf16.to(torch.int8)
        self.seen: list[Limits] = []

    def measure(self) -> Limits:
        n_bytes, n_ops = 2 * self._source.nbytes, 2 * len(self._bf16) ** 3
        limits = Limits(
            read_gb_s=n_bytes * self._per_second(lambda: self._target.copy_(self._source)) / 1e9,
            int8_tops=n_ops * self._per_second(lambda: torch._int_mm(self._int8, self._int8.t())) / 1e12,
            bf16_tflops=n_ops * self._per_second(lambda: self._bf16 @ self._bf16) / 1e12,
        )
        self.seen.append(limits)
        return limits

    def _per_second(self, work: Callable[[], object]) -> float:
        """How often the device does it in a second."""
        work()
        self._wait()
        n, begin = 0, time.perf_counter()
        while True:
            for _ in range(_COPIES):
                work()
            self._wait()
            n += _COPIES
            seconds = time.perf_counter() - begin
            if seconds >= self._seconds:
                return n / seconds

    def _wait(self) -> None:
        if self._device.type != "cpu":
            torch.get_device_module(self._device).synchronize(self._device)
