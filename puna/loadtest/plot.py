"""A load test as a picture: distributions of the two latencies that users feel, and the load over time."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from puna.core import BadInput
from puna.loadtest.report import Report


def require_matplotlib() -> None:
    """Raise BadInput where it is missing; before a load is sent, not behind it."""
    if find_spec("matplotlib") is None:
        raise BadInput("--plot needs matplotlib, which is not installed: pip install 'puna[loadtest]'")


def plot(report: Report, path: Path) -> None:
    """Write a PNG of 1600 x 1000 pixels. Raises BadInput without matplotlib, OSError."""
    require_matplotlib()
    # not pyplot: it looks for a display and keeps figures in a global
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 10), dpi=100, layout="constrained")
    axes = figure.subplots(2, 2)
    good = [outcome for outcome in report.outcomes if outcome.error is None]
    _distribution(axes[0][0], "time to first token", [o.ttft for o in good], report.targets.ttft)
    _distribution(axes[0][1], "time per output token", [o.tpot for o in good], report.targets.tpot)
    whole = report.to_json()
    series = whole["over_time"]
    _line(axes[1][0], "requests running", series["running"], series["bin_s"])
    _line(axes[1][1], "output tokens per second", series["output_tokens_per_s"], series["bin_s"])
    figure.suptitle(
        f"{report.load.model} on {report.server}: {whole['requests_per_s']:.2f} requests/s, "
        f"{whole['output_tokens_per_s']:.1f} output tokens/s, {whole['goodput']['share']:.0%} within targets",
        parse_math=False,
    )
    figure.savefig(path, format="png")


def _distribution(axes: Any, name: str, seconds: list[float | None], target: float) -> None:
    """The share of requests that took at most so long, with percentiles and the target."""
    values = np.array([value for value in seconds if value is not None], np.float64) * 1e3
    axes.set(title=name, xlabel="ms", ylabel="share of requests", ylim=(0, 1.02))
    axes.axvline(target * 1e3, color="tab:red", linestyle="--", label=f"target {target * 1e3:g} ms")
    if len(values):
        axes.ecdf(values)
        for p, style in ((50, "-"), (95, ":")):
            at = float(np.percentile(values, p))
            axes.axvline(at, color="tab:gray", linestyle=style, label=f"p{p} {at:,.1f} ms")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()


def _line(axes: Any, name: str, values: list[float], width: float) -> None:
    axes.set(title=name, xlabel="seconds")
    axes.stairs(values, np.arange(len(values) + 1) * width, fill=True, alpha=0.4)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
