"""Curves as a PNG (with matplotlib, of the extra `loadtest`) and as letters for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from puna.core import BadInput

Curve = Sequence[tuple[float, float]]
Lines = Sequence[tuple[str, float]]  # names and heights of level lines


def png(path: Path, curve: Curve, title: str, x: str, y: str, lines: Lines = ()) -> None:
    """1200 x 750 pixels. Raises BadInput without matplotlib, OSError."""
    if find_spec("matplotlib") is None:
        raise BadInput("--plot FILE needs matplotlib: pip install 'puna[loadtest]'; --plot - does not")
    from matplotlib.figure import Figure  # not pyplot: it looks for a display

    figure = Figure(figsize=(12, 7.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.plot([p[0] for p in curve], [p[1] for p in curve], marker=".")
    for name, height in lines:
        axes.axhline(height, linestyle="--", linewidth=0.8)
        axes.annotate(name, (curve[-1][0], height), ha="right", va="bottom", fontsize=8)
    axes.set(xlabel=x, ylabel=y)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.set_title(title, parse_math=False)
    figure.savefig(path, format="png")


def terminal(curve: Curve, title: str, x: str, y: str, lines: Lines = (), width: int = 64) -> str:
    """A bar for each point; a level line is a mark in every row that is named below."""
    top = max([p[1] for p in curve] + [height for _, height in lines])
    marks = {round(height / top * (width - 1)): chr(ord("a") + n) for n, (_, height) in enumerate(lines)}
    rows = [title, f"{x:>12}  {y}"]
    for left, value in curve:
        bar = list(("#" * round(value / top * (width - 1))).ljust(width))
        for place, mark in marks.items():
            bar[place] = mark
        rows.append(f"{left:>12.4g}  {''.join(bar).rstrip()} {value:.4g}")
    rows += [f"{chr(ord('a') + n)}: {name}, {height:.4g}" for n, (name, height) in enumerate(lines)]
    return "\n".join(rows)
