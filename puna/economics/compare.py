"""Host a model yourself, or buy its tokens: costs beside prices, and where the answer flips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from puna.core import BadValue
from puna.economics.calibrate import Measured, measured
from puna.economics.hardware import chip, positive, share
from puna.economics.prices import Listed
from puna.economics.serving import usd_per_mtok
from puna.model import catalog

_LENGTH = 1000  # tokens of prompts and answers that comparisons are made at


@dataclass(frozen=True, slots=True)
class Speed:
    """What one's own machines do: output tokens a second of `n` accelerators, at `ratio` tokens in for each
    token out."""

    tok_s: float
    n: int
    accelerator: str
    ratio: float
    origin: str

    def __post_init__(self) -> None:
        if self.n < 1:
            raise BadValue(f"the number of accelerators must be 1 or more, got {self.n}")
        positive("output tokens per second", self.tok_s)
        positive("input tokens for each output token", self.ratio, zero=True)


def measured_speed(model: str, accelerator: str | None) -> Speed:
    """The cheapest published measurement of these weights with 1,000 tokens in and out.

    Cheapest at the rate that an accelerator has where none is asked for.
    Only rows of the same shape count: Llama 3.1 70B is as fast as 3.3. Raises BadValue where there is none.
    """
    config = catalog.find(model).config
    fitting = [
        row
        for row in measured()
        if (row.prompt, row.output) == (_LENGTH, _LENGTH)
        and catalog.find(row.model).config == config
        and accelerator in (None, row.accelerator)
    ]
    if not fitting:
        where = f" on {accelerator}" if accelerator else ""
        raise BadValue(f"nobody's measurement of {model}{where} is shipped; give your own with --tok-s")
    best = min(fitting, key=_usd)
    origin = f"{best.source.title} ({best.source.date}), {best.weights}, {best.prompt} in, {best.output} out"
    return Speed(best.output_tok_s, best.n, best.accelerator, 1.0, origin)


def _usd(row: Measured) -> float:
    """Dollars an hour for an output token a second."""
    own = chip(row.accelerator)
    return own.rate(own.best_rate()) * row.n / row.output_tok_s


@dataclass(frozen=True, slots=True)
class Offer:
    """One host's price of a million tokens out with `ratio` million in, against one's own cost."""

    provider: str
    model_id: str
    usd: float
    flip: float | None  # utilisation above which one's own machines are cheaper; None: never
    margin: float  # gross, for who sells at this price at the utilisation asked for
    flags: tuple[str, ...]

    @property
    def answer(self) -> str:
        return "host it yourself" if self.margin > 0 else "buy"


@dataclass(frozen=True, slots=True)
class Comparison:
    own_usd: float  # of a million tokens out with what belongs to them in, at `utilisation`
    full_usd: float  # likewise with machines that never idle
    utilisation: float
    offers: tuple[Offer, ...]

    def curve(self) -> list[tuple[float, float]]:
        """(utilisation, dollars) from 5 % to 100 %."""
        return [(n / 100, self.full_usd * 100 / n) for n in range(5, 101, 5)]


def compare(speed: Speed, usd_h: float, utilisation: float, rows: Sequence[Listed]) -> Comparison:
    """Offers cheapest first; free rows and those that have ended or been replaced are left out."""
    full = usd_per_mtok(speed.tok_s, usd_h, speed.n)
    own = full / share("utilisation", utilisation)
    offers = []
    for item in rows:
        row = item.row
        if item.row.is_free or {"ended", "replaced"} & set(item.flags):
            continue
        usd = float(row.input or 0) * speed.ratio + float(row.output or 0)
        flip = full / usd
        offers.append(
            Offer(row.provider, row.model_id, usd, flip if flip <= 1 else None, 1 - own / usd, item.flags)
        )
    return Comparison(own, full, utilisation, tuple(sorted(offers, key=lambda offer: offer.usd)))


def warnings(rows: Sequence[Listed], today: date) -> list[str]:
    """What a reader must know of these prices."""
    priced = [item for item in rows if not item.row.is_free]
    found = []
    if len(priced) < len(rows):
        n = len(rows) - len(priced)
        found.append(f"{n} free or unpriced row{' is' if n == 1 else 's are'} left out")
    if ended := sum("ended" in item.flags for item in priced):
        found.append(f"{ended} offer{' has' if ended == 1 else 's have'} ended by {today}")
    if outliers := sum("outlier" in item.flags for item in priced):
        found.append(
            f"{outliers} price{' is' if outliers == 1 else 's are'} more than three times from the median"
        )
    if old := [item for item in priced if any(flag.endswith("days old") for flag in item.flags)]:
        found.append(f"{len(old)} price{' is' if len(old) == 1 else 's are'} more than 90 days old")
    return found
