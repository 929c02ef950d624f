"""Curves as a PNG (with matplotlib, of the extra `loadtest`) and as letters for a terminal.

Heights that differ by more than SPAN are drawn on a logarithmic scale, and the axis says so: on a straight
one all but the highest would lie on the floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import log
from pathlib import Path

from puna.core import BadInput

SPAN = 30
Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Level:
    """A line across the picture, and where the curve crosses it."""

    name: str
    height: float
    at: float | None = None


def is_wide(curve: Curve) -> bool:
    """Whether it takes a logarithmic scale."""
    heights = [y for _, y in curve]
    return min(heights) > 0 and max(heights) / min(heights) > SPAN


def png(path: Path, curve: Curve, title: str, x: str, y: str, levels: Sequence[Level] = ()) -> None:
    """1200 x 750 pixels. Raises BadInput without matplotlib, OSError."""
    if find_spec("matplotlib") is None:
        raise BadInput("--plot FILE needs matplotlib: pip install 'puna[loadtest]'; --plot - does not")
    from matplotlib.figure import Figure  # not pyplot: it looks for a display

    figure = Figure(figsize=(12, 7.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    points = sorted([*curve, *((one.at, one.height) for one in levels if one.at is not None)])
    axes.plot([p[0] for p in points], [p[1] for p in points], marker=".")
    for level in levels:
        axes.axhline(level.height, linestyle="--", linewidth=0.8)
        axes.annotate(level.name, (curve[-1][0], level.height), ha="right", va="bottom", fontsize=8)
        if level.at is not None:
            axes.plot([level.at], [level.height], marker="o", color="black")
            axes.annotate(f"{level.at:.3g}", (level.at, level.height), xytext=(4, 6),
                          textcoords="offset points", fontsize=9)  # fmt: skip
    axes.set(xlabel=x, ylabel=f"{y} (logarithmic)" if is_wide(curve) else y)
    if is_wide(curve):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.set_title(title, parse_math=False)
    figure.savefig(path, format="png")


def terminal(curve: Curve, title: str, x: str, y: str, levels: Sequence[Level] = (), width: int = 64) -> str:
    """A bar for each point; a level is a mark in every row that is named below."""
    heights = [*(p[1] for p in curve), *(level.height for level in levels)]
    low, top, wide = min(heights), max(heights), is_wide(curve)

    def length(height: float) -> int:
        if wide and height > 0:
            return 1 + round(log(height / low) / log(top / low) * (width - 2))
        return round(height / top * (width - 1))

    marks = {length(level.height): chr(ord("a") + n) for n, level in enumerate(levels)}
    rows = [title, f"{x:>12}  {y}{' (logarithmic)' if wide else ''}"]
    for left, value in curve:
        bar = list(("#" * length(value)).ljust(width))
        for place, mark in marks.items():
            bar[place] = mark
        rows.append(f"{left:>12.4g}  {''.join(bar).rstrip()} {value:.4g}")
    for n, level in enumerate(levels):
        crossed = "" if level.at is None else f", crossed at {level.at:.3g}"
        rows.append(f"{chr(ord('a') + n)}: {level.name}, {level.height:.4g}{crossed}")
    return "\n".join(rows)
