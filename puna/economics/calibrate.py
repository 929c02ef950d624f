"""How far engines stay below the roofline: factors from published measurements and from the user's own bench.

A factor is measured speed over the bound of the same deployment. Those shipped are grouped by what was
measured, for they differ: one stream reads nearly at the limit, a full batch of a dense model reaches a third
to a half, one of a mixture of experts a fifth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, log
from typing import Any

from puna.core import BadFile, BadValue
from puna.economics.hardware import Cell, Chip, Source, chip, data_text, load_json, positive, read_sources
from puna.economics.roofline import Bound, Deployment, bound
from puna.model import catalog
from puna.model.config import ModelConfig

_UNSTATED_BATCH = 1 << 16  # so large that reading weights does not count
KINDS = ("one stream", "dense", "experts")


@dataclass(frozen=True, slots=True)
class Measured:
    """Output tokens per second of one deployment, by whoever measured it."""

    model: str
    accelerator: str
    n: int
    weights: str
    cache: str
    prompt: int | None  # None: not stated
    output: int | None
    output_tok_s: float
    kind: str
    source: Source

    def deployment(self) -> Deployment:
        """As it was measured. Where lengths are not stated, the most generous: no prompt and no context."""
        config, own = catalog.find(self.model).config, chip(self.accelerator)
        if self.prompt is None or self.output is None:
            return Deployment(config, own, self.n, self.weights, self.cache, 0, 0, 1, _UNSTATED_BATCH)
        batch = 1 if self.kind == "one stream" else None
        return Deployment(config, own, self.n, self.weights, self.cache, self.prompt, 0, self.output, batch)

    @property
    def efficiency(self) -> float:
        return self.output_tok_s / bound(self.deployment()).output_tok_s


@dataclass(frozen=True, slots=True)
class Factor:
    """Share of the bound: the geometric mean of measurements, and their extremes."""

    mean: float
    low: float
    high: float
    n: int
    origin: str

    @classmethod
    def of(cls, values: Sequence[float], origin: str) -> Factor:
        if not values:
            raise BadValue(f"there is no measurement to calibrate with: {origin}")
        for value in values:
            positive("a measured share of the limit", value)
        mean = exp(sum(map(log, values)) / len(values))
        return cls(mean, min(values), max(values), len(values), origin)


@cache
def measured() -> tuple[Measured, ...]:
    """The shipped measurements."""
    where = "the shipped measurements"
    content = load_json(data_text("measured.json"), where)
    sources = read_sources(content, where)
    names = ("model", "accelerator", "n", "weights", "cache", "prompt", "output", "output_tok_s", "kind")
    try:
        return tuple(
            Measured(source=sources[row["source"]], **{name: row[name] for name in names})
            for row in content["rows"]
        )
    except KeyError as error:
        raise BadFile(f"{where}: a row lacks {error}") from None


def kind_of(config: ModelConfig, batch: int | None) -> str:
    """Which of KINDS a deployment is like."""
    if batch == 1:
        return "one stream"
    return "dense" if config.experts is None else "experts"


@cache
def shipped_factor(kind: str) -> Factor:
    values = [row.efficiency for row in measured() if row.kind == kind]
    return Factor.of(values, f"{len(values)} published measurements of kind {kind!r}")


@dataclass(frozen=True, slots=True)
class Bench:
    """What `puna bench --json` found on a machine."""

    model: str
    chip: Chip  # the machine, as its limits were measured
    prefill_tok_s: float
    decode: Mapping[int, float]  # streams at once -> tokens per second
    prefill_share: Factor
    decode_share: Factor
    batch_share: Factor

    def factor(self, batch: int | None) -> Factor:
        return self.decode_share if batch == 1 else self.batch_share


def read_bench(text: str, where: str, memory_gb: float, day: Source) -> Bench:
    """A report of `puna bench --json`. Raises BadFile for another file."""
    content = load_json(text, where)
    try:
        machine = content["machine"]
        cells = {
            "bf16_tflops": machine["bf16_tflops"],
            "int8_tops": machine["int8_tops"],
            "memory_gb": memory_gb,
            "bandwidth_tb_s": machine["read_gb_s"] / 1e3,
        }
        prefill, decode, batch = content["prefill"], content["decode"], content["batch"]
        streams = {1: float(decode[0]["tok_s"])} | {int(r["batch"]): float(r["tok_s"]) for r in batch}
        name = content["model"].get("name") or content["model"].get("path") or "?"
        own = Chip("bench", "this machine", {k: Cell(float(v), day) for k, v in cells.items()})
        return Bench(
            str(name),
            own,
            max(float(r["tok_s"]) for r in prefill),
            streams,
            _shares(prefill, f"{where}, prefill"),
            _shares(decode, f"{where}, one stream"),
            _shares([r for r in batch if r["batch"] > 1] or decode, f"{where}, many streams"),
        )
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise BadFile(f"{where} must be a report of `puna bench --json`: {error!r}") from None


def _shares(rows: Sequence[Mapping[str, Any]], origin: str) -> Factor:
    return Factor.of([float(row["share_of_limit"]) for row in rows], origin)


def predicted(limit: Bound, factor: Factor) -> dict[str, float]:
    """Output tokens per second that an engine may reach: mean and extremes of the factor, at most the
    bound."""
    return {
        name: limit.output_tok_s * min(share, 1.0)
        for name, share in (("low", factor.low), ("mean", factor.mean), ("high", factor.high))
    }
