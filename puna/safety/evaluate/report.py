"""Figures with 95 % intervals, of several classifiers on the same cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from puna.core import BadValue
from puna.safety.evaluate.cases import Case
from puna.safety.evaluate.scores import (
    METRICS,
    Flags,
    Floats,
    best_threshold,
    confusion,
    metrics,
    resamples,
)
from puna.safety.verdict import Verdict

_MOST = 30_000_000  # weights of resamples at once


@dataclass(frozen=True, slots=True)
class Answers:
    """What a classifier said of all cases, in their order."""

    name: str
    verdicts: Sequence[Verdict]


def check(n_resamples: int, threshold: float | None) -> None:
    """Raise BadValue for what report() does not take: before anything is judged for it."""
    if threshold is not None and not 0 <= threshold <= 1:
        raise BadValue(f"a threshold must be from 0 to 1, got {threshold}")
    if not 100 <= n_resamples <= 1_000_000:
        raise BadValue(f"an interval needs from 100 to 1,000,000 resamples, got {n_resamples:,}")


def report(
    cases: Sequence[Case],
    answers: Sequence[Answers],
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Plain data: of every classifier its figures, for all cases, by group and by category, and how
    all others differ from the first one.

    A case is flagged where the classifier says so, or with `threshold` where its score is that or more. Every
    interval is of the same resamples, so that differences are paired. Raises BadValue for a threshold that is
    no probability, for too few or too many resamples, and for scores that are none.
    """
    check(n_resamples, threshold)
    is_unsafe_N = np.array([case.is_unsafe for case in cases])
    judges = [_Judge(one, threshold, len(cases)) for one in answers]
    drawn = [_metrics(is_unsafe_N, judge, n_resamples, seed) for judge in judges]
    first = judges[0]
    return {
        "cases": len(cases),
        "unsafe": int(is_unsafe_N.sum()),
        "resamples": n_resamples,
        "seed": seed,
        "threshold": threshold,
        "classifiers": [
            {
                "name": judge.name,
                **_figures(is_unsafe_N, judge, boot),
                "groups": _split(cases, is_unsafe_N, judge, "group", n_resamples, seed),
                "categories": _found(cases, judge),
            }
            for judge, boot in zip(judges, drawn, strict=True)
        ],
        "differences": [
            {"name": judge.name, "to": first.name, **_difference(is_unsafe_N, first, judge, drawn[0], boot)}
            for judge, boot in zip(judges[1:], drawn[1:], strict=True)
        ],
    }


class _Judge:
    def __init__(self, answers: Answers, threshold: float | None, n: int) -> None:
        assert len(answers.verdicts) == n
        self.name = answers.name
        self.score_N = np.array([verdict.score for verdict in answers.verdicts], np.float64)
        if not ((self.score_N >= 0) & (self.score_N <= 1)).all():
            raise BadValue(f"{self.name} must give scores from 0 to 1, it gave others")
        said = [verdict.is_unsafe for verdict in answers.verdicts]
        self.flagged_N: Flags = np.array(said) if threshold is None else self.score_N >= threshold

    def at(self, chosen_N: Flags) -> _Judge:
        part = object.__new__(_Judge)
        part.name, part.score_N, part.flagged_N = self.name, self.score_N[chosen_N], self.flagged_N[chosen_N]
        return part


def _metrics(is_unsafe_N: Flags, judge: _Judge, n: int, seed: int) -> dict[str, Floats]:
    """Of n resamples; in runs, since their weights are a matrix, and each run has a seed of its own."""
    step = max(1, _MOST // max(1, len(is_unsafe_N)))
    runs = [
        metrics(
            is_unsafe_N, judge.flagged_N, judge.score_N, resamples(is_unsafe_N, min(step, n - at), seed + at)
        )
        for at in range(0, n, step)
    ]
    return {name: np.concatenate([run[name] for run in runs]) for name in METRICS}


def _figures(is_unsafe_N: Flags, judge: _Judge, boot: dict[str, Floats]) -> dict[str, Any]:
    whole = _whole(is_unsafe_N, judge)
    found: dict[str, Any] = {name: _with_interval(whole[name], boot[name]) for name in METRICS}
    best, f1 = best_threshold(is_unsafe_N, judge.score_N)
    return {
        **found,
        "confusion": asdict(confusion(is_unsafe_N, judge.flagged_N)),
        "best_threshold": {"threshold": best, "f1": f1},
    }


def _whole(is_unsafe_N: Flags, judge: _Judge) -> dict[str, float]:
    ones = np.ones((1, len(is_unsafe_N)))
    made = metrics(is_unsafe_N, judge.flagged_N, judge.score_N, ones)
    return {name: float(value[0]) for name, value in made.items()}


def _with_interval(value: float, boot_B: Floats) -> dict[str, float] | None:
    """None where it is not defined. Resamples in which it is not say nothing."""
    if np.isnan(value) or np.isnan(boot_B).all():
        return None
    low, high = np.nanpercentile(boot_B, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high)}


def _difference(
    is_unsafe_N: Flags, first: _Judge, other: _Judge, boot: dict[str, Floats], drawn: dict[str, Floats]
) -> dict[str, Any]:
    a, b = _whole(is_unsafe_N, first), _whole(is_unsafe_N, other)
    return {name: _with_interval(b[name] - a[name], drawn[name] - boot[name]) for name in METRICS}


def _split(
    cases: Sequence[Case], is_unsafe_N: Flags, judge: _Judge, key: str, n: int, seed: int
) -> dict[str, Any]:
    names_N = np.array([getattr(case, key) for case in cases])
    found: dict[str, Any] = {}
    for name in sorted({*names_N} - {""}):
        at_N = names_N == name
        y, part = is_unsafe_N[at_N], judge.at(at_N)
        boot = _metrics(y, part, n, seed)
        whole = _whole(y, part)
        found[str(name)] = {
            "cases": int(at_N.sum()),
            "unsafe": int(y.sum()),
            **{metric: _with_interval(whole[metric], boot[metric]) for metric in METRICS},
        }
    return found


def _found(cases: Sequence[Case], judge: _Judge) -> dict[str, Any]:
    """How many unsafe cases of each category were flagged."""
    names = sorted({case.category for case in cases if case.category and case.is_unsafe})
    return {
        name: {
            "unsafe": sum(case.category == name and case.is_unsafe for case in cases),
            "flagged": sum(
                case.category == name and case.is_unsafe and bool(flagged)
                for case, flagged in zip(cases, judge.flagged_N, strict=True)
            ),
        }
        for name in names
    }
