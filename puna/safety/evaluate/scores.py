"""Figures of a classifier, of many resamples at once.

B resamples, N cases, C thresholds: `weight_BN` says how often each resample has each case; the set itself is
the resample with all ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
METRICS = ("precision", "recall", "f1", "fpr", "auprc")


@dataclass(frozen=True, slots=True)
class Confusion:
    tp: int
    fp: int
    fn: int
    tn: int


def confusion(is_unsafe_N: Flags, flagged_N: Flags) -> Confusion:
    return Confusion(
        int(np.sum(is_unsafe_N & flagged_N)), int(np.sum(~is_unsafe_N & flagged_N)),
        int(np.sum(is_unsafe_N & ~flagged_N)), int(np.sum(~is_unsafe_N & ~flagged_N)),
    )  # fmt: skip


def metrics(is_unsafe_N: Flags, flagged_N: Flags, score_N: Floats, weight_BN: Floats) -> dict[str, Floats]:
    """METRICS, each [B]; NaN where one is not defined: precision where nothing is flagged, recall, F1 and
    AUPRC without unsafe cases, false-positive rate without safe ones."""
    y_N, said_N = is_unsafe_N.astype(np.float64), flagged_N.astype(np.float64)
    tp_B = weight_BN @ (y_N * said_N)
    fp_B = weight_BN @ ((1 - y_N) * said_N)
    n_unsafe_B, n_safe_B = weight_BN @ y_N, weight_BN @ (1 - y_N)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "precision": tp_B / (tp_B + fp_B),
            "recall": tp_B / n_unsafe_B,
            "f1": np.where(n_unsafe_B > 0, 2 * tp_B / (tp_B + fp_B + n_unsafe_B), np.nan),
            "fpr": fp_B / n_safe_B,
            "auprc": average_precision(is_unsafe_N, score_N, weight_BN),
        }


def average_precision(is_unsafe_N: Flags, score_N: Floats, weight_BN: Floats) -> Floats:
    """The area under precision and recall as steps: the sum over thresholds of precision times the recall
    gained there; equal scores are one threshold. [B], NaN without unsafe cases."""
    order_N = np.argsort(-score_N, kind="stable")
    ends_C = _last_of_equals(score_N[order_N])
    weight_BN = weight_BN[:, order_N]
    tp_BC = np.cumsum(weight_BN * is_unsafe_N[order_N], axis=1)[:, ends_C]
    said_BC = np.cumsum(weight_BN, axis=1)[:, ends_C]
    gained_BC = np.diff(tp_BC, axis=1, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision_BC = np.where(said_BC > 0, tp_BC / said_BC, 0.0)
        found_B: Floats = (gained_BC * precision_BC).sum(axis=1) / tp_BC[:, -1]
    return found_B


def best_threshold(is_unsafe_N: Flags, score_N: Floats) -> tuple[float, float]:
    """The score from which on to flag for the largest F1, and that F1; of equals the highest threshold."""
    order_N = np.argsort(-score_N, kind="stable")
    ends_C = _last_of_equals(score_N[order_N])
    tp_C = np.cumsum(is_unsafe_N[order_N])[ends_C]
    f1_C = 2 * tp_C / (ends_C + 1 + is_unsafe_N.sum())
    best = int(np.argmax(f1_C))
    return float(score_N[order_N][ends_C[best]]), float(f1_C[best])


def resamples(is_unsafe_N: Flags, n: int, seed: int) -> Floats:
    """Weights [n, N] of a stratified bootstrap: safe and unsafe cases are drawn apart, as many as there are
    of each."""
    rng = np.random.default_rng(seed)
    weight_BN = np.zeros((n, len(is_unsafe_N)))
    for label in (False, True):
        at = np.flatnonzero(is_unsafe_N == label)
        if len(at):
            weight_BN[:, at] = rng.multinomial(len(at), np.full(len(at), 1 / len(at)), size=n)
    return weight_BN


def _last_of_equals(sorted_N: Floats) -> NDArray[np.intp]:
    return np.append(np.flatnonzero(np.diff(sorted_N)), len(sorted_N) - 1)
