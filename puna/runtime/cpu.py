"""What the CPU offers the compiled kernels: cores, targets, measured limits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from puna import _native
from puna.core import WorkFailed


def default_threads() -> int:
    """Cores this process may use: its affinity, within the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


TILES = "amx"  # the target that multiplies tiles of bf16 (csrc/ops/linear_amx.h)


def cpu_info(target: str = "") -> dict[str, Any]:
    """The chosen CPU target, the ones this machine could run, and the number of usable cores."""
    return {
        "target": _native.chosen_target(target),
        "available": _native.available_targets(),
        "cores": default_threads(),
    }


def measure_limits(
    threads: int, target: str = "", seconds: float = 0.3, read_bytes: int = 1 << 30
) -> dict[str, float]:
    """Read bandwidth (1e9 bytes/s) and peaks (1e12 operations/s, a multiply-accumulate being two)."""
    return {
        "read_gb_s": _native.read_gb_s(threads, read_bytes, seconds),
        "int8_tops": _native.int8_tops(target, threads, seconds),
        "bf16_tflops": _native.bf16_tflops(target, threads, seconds),
    }


def new_plan(target: str, threads: int, sizes: tuple[Any, ...]) -> _native.Plan:
    """A plan without ops, its threads running. Raises WorkFailed where the system starts no more."""
    try:
        return _native.Plan(target, threads, *sizes)
    except RuntimeError as error:
        raise WorkFailed(
            f"{threads} threads could not be started ({error}); ask for fewer, or raise the limit"
        ) from None
