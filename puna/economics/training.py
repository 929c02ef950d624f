"""What training takes: operations, hours, energy, emissions, dollars; failures and the checkpoints against
them. For any configuration, and for the runs that Meta's model cards report.

Two conventions of operations: "weights" is 6 per active parameter and token (Kaplan et al. 2020), "attention"
adds causal attention, 6 * heads * head_dim * positions per token and layer. Utilisation of a run is always
stated by the first. Checkpoint intervals: Young 1974, Daly 2006.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from math import exp, sqrt
from typing import Any

from puna.core import BadFile, BadValue, UnknownModel, closest
from puna.economics.hardware import (
    Chip,
    Source,
    chip,
    data_text,
    load_json,
    positive,
    read_sources,
    share,
)
from puna.model.config import ModelConfig


def weight_flops(active: float, tokens: float) -> float:
    """6 N D."""
    return 6.0 * positive("active parameters", active) * positive("tokens", tokens)


def attention_share(config: ModelConfig, sequence: int, active: float) -> float:
    """What causal attention adds to weight_flops, as a share of them, at sequences of this length."""
    if sequence < 1:
        raise BadValue(f"the sequence must have 1 token or more, got {sequence}")
    seen = 0
    for layer in range(config.n_layers):
        chunk = config.chunk(layer)
        seen += sequence if chunk is None else min(chunk, sequence)
    return seen * config.n_heads * config.head_dim / active


@dataclass(frozen=True, slots=True)
class Failures:
    """Of a job that one failed accelerator stops."""

    mtbf_h: float  # hours between interruptions of the whole job
    save_s: float = 60.0  # that training stands still for a checkpoint
    restart_s: float = 600.0  # from an interruption to the first new step

    def __post_init__(self) -> None:
        for name in ("mtbf_h", "save_s", "restart_s"):
            positive(name, getattr(self, name))
        if self.save_s + self.restart_s > self.mtbf_h * 3600:
            raise BadValue(
                f"a failure every {self.mtbf_h * 3600:,.0f} seconds leaves no time for work between "
                f"{self.restart_s:g} seconds of restarting and {self.save_s:g} of saving"
            )

    @classmethod
    def of(cls, n: int, per_accelerator_h: float, save_s: float, restart_s: float) -> Failures:
        """From the mean time between failures of one accelerator with its share of everything else."""
        return cls(positive("hours between failures", per_accelerator_h) / n, save_s, restart_s)

    @property
    def young_s(self) -> float:
        """Seconds between checkpoints, first order."""
        return sqrt(2 * self.save_s * self.mtbf_h * 3600)

    @property
    def daly_s(self) -> float:
        """Seconds between checkpoints, with Daly's higher orders."""
        m, d = self.mtbf_h * 3600, self.save_s
        x = d / (2 * m)
        return sqrt(2 * d * m) * (1 + sqrt(x) / 3 + x / 9) - d

    @property
    def goodput(self) -> float:
        """Share of the time that ends up in the model, with Daly's interval and exponential failures."""
        m, interval = self.mtbf_h * 3600, self.daly_s
        whole = m * exp(self.restart_s / m) * (exp((interval + self.save_s) / m) - 1)
        return interval / whole


@dataclass(frozen=True, slots=True)
class Run:
    """A run to be planned."""

    active: float
    tokens: float
    chip: Chip
    n: int
    mfu: float  # of the peak of `arithmetic`, by the convention "weights"
    arithmetic: str = "bf16_tflops"
    usd_h: float | None = None
    pue: float = 1.0
    usd_per_kwh: float = 0.087
    tonnes_per_mwh: float | None = None
    goodput: float = 1.0

    def __post_init__(self) -> None:
        for name in ("mfu", "goodput"):
            share(name, getattr(self, name))
        positive("usd_per_kwh", self.usd_per_kwh)
        if self.n < 1:
            raise BadValue(f"the number of accelerators must be 1 or more, got {self.n}")
        if self.pue < 1:
            raise BadValue(f"pue must be 1 or more, got {self.pue:g}")
        for name in ("usd_h", "tonnes_per_mwh"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name), zero=name == "tonnes_per_mwh")

    @property
    def flops(self) -> float:
        return weight_flops(self.active, self.tokens)

    @property
    def ideal_hours(self) -> float:
        """Accelerator-hours without any failure."""
        return self.flops / (self.chip.need(self.arithmetic) * 1e12 * self.mfu) / 3600

    @property
    def hours(self) -> float:
        return self.ideal_hours / self.goodput

    @property
    def days(self) -> float:
        return self.hours / self.n / 24

    @property
    def mwh(self) -> float | None:
        watts = self.chip.get("watts")
        return None if watts is None else energy_mwh(self.hours, watts) * self.pue

    @property
    def tonnes(self) -> float | None:
        if self.mwh is None or self.tonnes_per_mwh is None:
            return None
        return self.mwh * self.tonnes_per_mwh

    @property
    def usd(self) -> float | None:
        return None if self.usd_h is None else self.hours * self.usd_h


def energy_mwh(hours: float, watts: float) -> float:
    """Of accelerators alone, at the power they are rated for."""
    return hours * watts / 1e6


@dataclass(frozen=True, slots=True)
class Reported:
    """What the maker said of a run."""

    name: str
    models: tuple[str, ...]  # of the catalog
    active: float
    tokens: float
    accelerator: str
    hours: float
    tonnes: float | None  # CO2 equivalent, by location
    source: Source
    arithmetic: str = "bf16_tflops"
    tflops: float | None = None  # stated instead of hours

    @property
    def flops(self) -> float:
        return weight_flops(self.active, self.tokens)

    @property
    def achieved_tflops(self) -> float:
        """Per accelerator, averaged over all hours."""
        return self.flops / self.hours / 3600 / 1e12

    @property
    def mfu(self) -> float:
        return self.achieved_tflops / chip(self.accelerator).need(self.arithmetic)

    @property
    def mwh(self) -> float:
        return energy_mwh(self.hours, chip(self.accelerator).need("watts"))

    @property
    def tonnes_per_mwh(self) -> float | None:
        return None if self.tonnes is None else self.tonnes / self.mwh

    def usd(self, usd_h: float) -> float:
        return self.hours * positive("the hourly rate", usd_h)


@dataclass(frozen=True, slots=True)
class Total:
    """Accelerator-hours of a whole release, as its card sums them."""

    name: str
    hours: float
    accelerator: str
    source: Source


@cache
def reported() -> dict[str, Reported]:
    where = "the shipped training runs"
    content, sources = _training_file(where)
    found = {}
    for row in content["runs"]:
        try:
            tflops, hours = row.get("tflops"), row.get("hours")
            if hours is None:
                hours = weight_flops(row["active"], row["tokens"]) / (tflops * 1e12) / 3600
            found[row["name"]] = Reported(
                row["name"], tuple(row["models"]), row["active"], row["tokens"], row["accelerator"], hours,
                row.get("tonnes"), sources[row["source"]], row.get("arithmetic", "bf16_tflops"), tflops,
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise BadFile(f"{where}: a run lacks {error}") from None
    return found


@cache
def totals() -> dict[str, Total]:
    where = "the shipped training runs"
    content, sources = _training_file(where)
    return {
        row["name"]: Total(row["name"], row["hours"], row["accelerator"], sources[row["source"]])
        for row in content["totals"]
    }


def _training_file(where: str) -> tuple[Mapping[str, Any], dict[str, Source]]:
    content = load_json(data_text("training.json"), where)
    return content, read_sources(content, where)


def run_of(model: str) -> Reported | None:
    """The reported run that made a model of the catalog, or None."""
    return next((run for run in reported().values() if model in (run.name, *run.models)), None)


def find_run(model: str) -> Reported:
    """Raises UnknownModel."""
    run = run_of(model)
    if run is None:
        known = [name for r in reported().values() for name in (r.name, *r.models)]
        raise UnknownModel(f"no card reports a training run of {model!r}{closest(model, known)}")
    return run


def days_between(hours: float, n: int) -> float:
    """Days of `n` accelerators for so many accelerator-hours."""
    return hours / n / 24


def age_days(source: Source, today: date) -> int:
    return (today - source.date).days
