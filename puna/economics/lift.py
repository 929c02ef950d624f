"""What a feature earns, from an experiment with a randomised holdout; nothing is read into a broken one.

Intention to treat: everyone counts in the arm that chance gave them, used or not. CUPED (Deng et al. 2013)
takes out what was known before; the confidence sequence is the asymptotic one of Waudby-Smith et al.
(arXiv:2103.06476) and holds however often it is looked at. The sample-ratio check refuses below p = 0.001.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import erfc, isfinite, log, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile, BadValue
from puna.economics.hardware import positive
from puna.economics.tables import table

Array = NDArray[np.float64]
ARMS = ("control", "treatment")
SRM_LIMIT = 0.001
_MOST = 1e15  # of a number in the file
_LEAST = 30  # users of an arm, for the normal approximation


@dataclass(frozen=True, slots=True)
class Experiment:
    """One number for each user."""

    treated: NDArray[np.bool_]
    revenue: Array
    before: Array | None = None  # of the same users, from before they were assigned
    exposed: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        for name, n in zip(ARMS, (int((~self.treated).sum()), int(self.treated.sum())), strict=True):
            if n < _LEAST:
                raise BadValue(f"the arm {name!r} must have {_LEAST} users or more, found {n}")


def read_experiment(text: str, where: str) -> Experiment:
    """CSV with user, arm (control or treatment), revenue, and perhaps pre and exposed (0 or 1). Raises
    BadFile for a user who stands there twice, another arm, or a number that is none.
    """
    names, rows = table(text, where)
    missing = [name for name in ("user", "arm", "revenue") if name not in names]
    if missing:
        raise BadFile(f"{where} must have the columns user, arm and revenue; it lacks {', '.join(missing)}")
    arms: dict[str, str] = {}
    columns: dict[str, list[float]] = {"revenue": []}
    columns |= {name: [] for name in ("pre", "exposed") if name in names}
    currency = None
    for n, row in rows:
        user, arm = row["user"], row["arm"]
        currency = row.get("currency") if currency is None else currency
        if row.get("currency") != currency:
            raise BadFile(
                f"{where}:{n}: revenue is in {row.get('currency')!r} here and in {currency!r} before; "
                "convert it to one currency"
            )
        if arms.get(user, arm) != arm:
            raise BadFile(f"{where}:{n}: user {user!r} is in both arms: the randomisation is broken")
        if user in arms:
            raise BadFile(f"{where}:{n}: user {user!r} stands there twice; sum each user's rows first")
        if arm not in ARMS:
            raise BadFile(f"{where}:{n}: arm must be control or treatment, found {arm!r}")
        arms[user] = arm
        for name, values in columns.items():
            values.append(_number(row[name], f"{where}:{n}: {name}"))
    exposed = np.array(columns["exposed"]) if "exposed" in columns else None
    if exposed is not None and not np.isin(exposed, (0.0, 1.0)).all():
        raise BadFile(f"{where}: exposed must be 0 or 1")
    return Experiment(
        np.array([arm == "treatment" for arm in arms.values()], np.bool_),
        np.array(columns["revenue"], np.float64),
        np.array(columns["pre"], np.float64) if "pre" in columns else None,
        None if exposed is None else exposed == 1.0,
    )


def _number(text: str, place: str) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = float("nan")
    if not isfinite(value):
        raise BadFile(f"{place} must be a number, found {text!r}; nothing is filled in")
    if abs(value) > _MOST:
        raise BadFile(f"{place} must be at most {_MOST:g}, found {text!r}: squares of it would mean nothing")
    return value


def sample_ratio_p(n_control: int, n_treated: int, share: float) -> float:
    """Of Pearson's test with one degree of freedom that chance gave so many to each arm."""
    if not 0 < share < 1:
        raise BadValue(f"the share of the treatment must be between 0 and 1, got {share:g}")
    n = n_control + n_treated
    expected = n * share
    square = (n_treated - expected) ** 2 * (1 / expected + 1 / (n - expected))
    return erfc(sqrt(square / 2))


def cuped(e: Experiment) -> Array:
    """Revenue less what was to be expected from before; its mean is the same."""
    if e.before is None:
        return e.revenue
    variance = float(e.before.var())
    if variance == 0:
        return e.revenue
    x = e.before - e.before.mean()
    adjusted: Array = e.revenue - float((x * e.revenue).mean()) / variance * x
    return adjusted


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of treatment less control, dollars a user; or of their ratio less 1."""

    difference: float
    error: float  # standard
    low: float
    high: float
    p: float


def estimate(values: Array, treated: NDArray[np.bool_], alpha: float) -> Estimate:
    """Welch's, with the normal distribution."""
    a, b = values[~treated], values[treated]
    error = sqrt(float(a.var(ddof=1)) / len(a) + float(b.var(ddof=1)) / len(b))
    difference = float(b.mean() - a.mean())
    half = NormalDist().inv_cdf(1 - alpha / 2) * error
    p = erfc(abs(difference) / error / sqrt(2)) if error else float(difference == 0)
    return Estimate(difference, error, difference - half, difference + half, p)


def lift_of(values: Array, treated: NDArray[np.bool_], alpha: float) -> Estimate | None:
    """Of treatment over control, less 1, by the delta method: the control's mean is an estimate as well.
    None where that mean is not well above zero, so that a share of it means nothing.
    """
    a, b = values[~treated], values[treated]
    base, other = float(a.mean()), float(b.mean())
    base_error = sqrt(float(a.var(ddof=1)) / len(a))
    z = NormalDist().inv_cdf(1 - alpha / 2)
    if base <= z * base_error:
        return None
    error = sqrt(float(b.var(ddof=1)) / len(b) + (other / base * base_error) ** 2) / base
    found = other / base - 1
    p = erfc(abs(found) / error / sqrt(2)) if error else float(found == 0)
    return Estimate(found, error, found - z * error, found + z * error, p)


def between(name: str, value: float) -> None:
    """Raise BadValue unless a share is above 0 and below 1."""
    if not 0 < value < 1:
        raise BadValue(f"{name} must be between 0 and 1, got {value:g}")


def detectable(error: float, alpha: float, power: float) -> float:
    """The smallest true difference that is found with that power."""
    z = NormalDist()
    return (z.inv_cdf(1 - alpha / 2) + z.inv_cdf(power)) * error


def users_for(lift: float, cv: float, alpha: float, power: float, correlation: float = 0.0) -> float:
    """Users of each of two equal arms that find a relative lift of a measure with this coefficient of
    variation; CUPED with a covariate of that correlation takes its share off."""
    z = NormalDist()
    needed = z.inv_cdf(1 - alpha / 2) + z.inv_cdf(power)
    return 2 * (needed * cv / positive("the lift", lift)) ** 2 * (1 - correlation**2)


def sequence_half(error: float, n: int, planned: int, alpha: float) -> float:
    """Half the width of the confidence sequence at `n` users, tightest at `planned`, which must have been
    chosen before the first look."""
    if planned < 1:
        raise BadValue(f"the planned users must be 1 or more, got {planned}")
    rho2 = (-2 * log(alpha) + log(-2 * log(alpha) + 1)) / planned
    grown = n * rho2 + 1
    # the textbook's sigma is error * sqrt(n): of one user's contribution to the difference
    return error * sqrt(n) * sqrt(2 * grown / (n * n * rho2) * log(sqrt(grown) / alpha))


@dataclass(frozen=True, slots=True)
class Costs:
    """Assumed by the user, not measured by the experiment; dollars for each user of the treatment over the
    experiment's time."""

    usd_user: float
    variable_share: float = 0.0  # of revenue, what earning it costs

    def __post_init__(self) -> None:
        positive("the cost of a user", self.usd_user, zero=True)
        if not 0 <= self.variable_share < 1:
            raise BadValue(f"the variable share must be from 0 to below 1, got {self.variable_share:g}")

    def break_even(self) -> float:
        """Dollars of revenue a user that the treatment must add."""
        return self.usd_user / (1 - self.variable_share)


def analyse(e: Experiment, share: float, alpha: float, power: float, planned: int | None,
            costs: Costs | None) -> dict[str, Any]:  # fmt: skip
    """Everything that is said of an experiment, in the order to say it. Raises BadValue for a broken one."""
    for name, value in (("alpha", alpha), ("power", power)):
        between(name, value)
    n_treated = int(e.treated.sum())
    n_control = len(e.treated) - n_treated
    p = sample_ratio_p(n_control, n_treated, share)
    if p < SRM_LIMIT:
        raise BadValue(
            f"{n_control:,} users in control and {n_treated:,} in treatment do not come from a split of "
            f"{1 - share:g} to {share:g} (p = {p:.1e}): the randomisation is broken, no result holds"
        )
    if e.revenue.max() == e.revenue.min():
        raise BadValue(f"all users have the same revenue, {e.revenue[0]:g}: nothing can be estimated of it")
    base = float(e.revenue[~e.treated].mean())
    plain = estimate(e.revenue, e.treated, alpha)
    values = cuped(e)
    best = estimate(values, e.treated, alpha)
    ratio = lift_of(values, e.treated, alpha)
    smallest = detectable(best.error, alpha, power)
    relative = (lambda x: x / base) if base > 0 else (lambda x: None)
    measured: dict[str, Any] = {
        "users": {"control": n_control, "treatment": n_treated},
        "sample_ratio_p": p,
        "detectable_usd": smallest,
        "detectable_lift": relative(smallest),
        "control_usd": base,
        "intention_to_treat": _json(plain),
        "cuped": None if e.before is None else _json(best),
        "variance_removed": 1 - float(values.var() / e.revenue.var()) if e.revenue.var() else 0.0,
        "lift": ratio and ratio.difference,
        "lift_interval": ratio and [ratio.low, ratio.high],
    }
    if e.exposed is not None:
        measured["exposed_in_control"] = int((e.exposed & ~e.treated).sum())
    if planned is not None:
        half = sequence_half(best.error, len(e.treated), planned, alpha)
        measured["confidence_sequence"] = [best.difference - half, best.difference + half]
    not_causal = None
    if e.exposed is not None and (e.exposed & e.treated).any():
        not_causal = float(e.revenue[e.exposed & e.treated].mean()) - base
    report: dict[str, Any] = {"measured": measured, "not_causal_exposed_usd": not_causal, "assumed": None}
    if costs is not None:
        needed = costs.break_even()
        report["break_even_lift"] = relative(needed)
        report["break_even_usd"] = needed
        report["verdict"] = (
            "pays" if best.low > needed else "does not pay" if best.high < needed else "not decided"
        )
        report["assumed"] = {"usd_user": costs.usd_user, "variable_share": costs.variable_share}
    return report


def _json(e: Estimate) -> dict[str, Any]:
    return {"usd_user": e.difference, "error": e.error, "interval": [e.low, e.high], "p": e.p}


@dataclass(frozen=True, slots=True)
class SelfTest:
    runs: int
    false_positives: int
    covered: int  # intervals that hold the truth, which is zero
    sequence_misses: int  # sequences that ever left it out, at looks along the way


def self_test(runs: int, users: int, alpha: float, seed: int, looks: Sequence[float] = (0.25, 0.5, 1.0)) -> (
    SelfTest
):  # fmt: skip
    """A/A experiments: skewed revenue that depends on before, and a treatment that does nothing."""
    between("alpha", alpha)
    rng = np.random.default_rng(seed)
    false = covered = misses = 0
    for _ in range(runs):
        before = rng.exponential(1.0, users)
        e = Experiment(rng.random(users) < 0.5, before + rng.exponential(1.0, users), before)
        found = estimate(cuped(e), e.treated, alpha)
        false += found.p < alpha
        covered += found.low <= 0 <= found.high
        misses += any(_left_out(e, round(users * look), users, alpha) for look in looks)
    return SelfTest(runs, false, covered, misses)


def _left_out(e: Experiment, n: int, planned: int, alpha: float) -> bool:
    assert e.before is not None, "A/A experiments have a covariate"
    part = Experiment(e.treated[:n], e.revenue[:n], e.before[:n])
    found = estimate(cuped(part), part.treated, alpha)
    return abs(found.difference) > sequence_half(found.error, n, planned, alpha)
