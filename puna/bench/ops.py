"""Micro-benchmark: the cases of ops/cases.py for `linear`, one thread, for every CPU target of this machine.

Time per call is the difference between many and few repetitions in one call, so that converting the input
and making the output do not count. The weight stays in the caches: this shows the arithmetic, not the memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from puna import _native
from puna.bench.jobs import FLOAT_KINDS
from puna.ops.cases import NARROW_KINDS, WIDE_KINDS, LinearCase
from puna.runtime.native import pack_weight
from puna.weights.blocks.quant import random_blocks
from puna.weights.blocks.recode import kernel_kind

SHAPE = (576, 1536)  # (E, D): a down projection of SmolLM2, whole blocks in every format
TOKENS = (1, 4, 16, 128)
_SECONDS = 0.03  # for each measurement
_TRIES = 3


@dataclass(frozen=True, slots=True)
class OpResult:
    target: str
    kind: str  # of the weight
    n_tokens: int
    gop_s: float  # 1e9 operations per second, a multiply-accumulate being two
    share_of_peak: float  # of one thread's int8 peak; for weights of floats the bf16 peak
    weight_gb_s: float  # 1e9 bytes of the weight per second


def cases() -> list[LinearCase]:
    """Every format that has a kernel of its own."""
    kinds = (kind for kind in NARROW_KINDS + WIDE_KINDS if kernel_kind(kind) == kind)
    return [LinearCase(kind, t, *SHAPE) for kind in kinds for t in TOKENS]


def measure_ops(targets: list[str], tick: Callable[[str], None]) -> list[OpResult]:
    """Every case on every target. Of cases and peaks alike the best of several tries counts: the question is
    what a kernel can do, not what else the machine was doing."""
    results: list[OpResult] = []
    for target in targets:
        peaks: dict[bool, list[float]] = {True: [], False: []}  # operations/s, by whether of floats
        found: list[tuple[LinearCase, float, int]] = []
        for case in cases():
            tick(f"{target} {case.kind} x {case.n_tokens}")
            is_float = case.kind in FLOAT_KINDS
            peak = _native.bf16_tflops if is_float else _native.int8_tops
            peaks[is_float].append(1e12 * peak(target, 1, _SECONDS))
            found.append((case, *_best_call(case, target)))
        for case, seconds, n_bytes in found:
            per_second = 2 * case.n_tokens * case.n_out * case.n_in / seconds
            share = per_second / max(peaks[case.kind in FLOAT_KINDS])
            results.append(
                OpResult(target, case.kind, case.n_tokens, per_second / 1e9, share, n_bytes / seconds / 1e9)
            )
    return results


def _best_call(case: LinearCase, target: str) -> tuple[float, int]:
    """Seconds of the fastest call, and bytes of the weight."""
    data = random_blocks(case.kind, case.shape, case.rng())
    matrix = pack_weight(case.kind, case.shape, data)
    x_TD = np.ascontiguousarray(case.x_TD())
    return min(_seconds_per_call(matrix, x_TD, target) for _ in range(_TRIES)), data.nbytes


def _seconds_per_call(matrix: Any, x_TD: np.ndarray[Any, Any], target: str) -> float:
    def timed(repeat: int) -> float:
        begin = time.perf_counter()
        _native.linear(matrix, x_TD, target, repeat)
        return time.perf_counter() - begin

    once = min(timed(1) for _ in range(3))
    repeat = max(4, round(_SECONDS / max(once, 1e-7)))
    return max((timed(repeat) - once) / (repeat - 1), 1e-9)
