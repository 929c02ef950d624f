"""What is sent, and when: a function of the seed alone, whatever the timing of the answers.

Request `i` of a load has the same prompt, length, tenant and arrival in every run with the same seed, against
any server, open or closed loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from random import Random
from typing import Any, Literal

from puna.core import BadInput, BadValue
from puna.loadtest.lengths import LengthMix
from puna.loadtest.words import content

Arrivals = Literal["poisson", "constant", "gamma", "trace"]
Endpoint = Literal["chat", "completions"]

# Beyond these a typing mistake is likelier than a wish.
MOST_REQUESTS = 100_000
MOST_RATE = 10_000.0
MOST_SECONDS = 24 * 3600.0
MOST_IN_FLIGHT = 8192


@dataclass(frozen=True, slots=True)
class Tenant:
    """One API key. `name` stands in reports, the key never does; `weight` is its share of the requests."""

    name: str = "default"
    key: str | None = field(default=None, repr=False)
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Planned:
    """One request. `at` is when it arrives, in seconds from the start; None in a closed loop."""

    index: int
    at: float | None
    tenant: Tenant
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TraceLine:
    """A request of a trace: its text or the number of tokens, and when it arrives, in seconds."""

    output_tokens: int
    prompt: str | None = None
    messages: Sequence[dict[str, Any]] | None = None
    prompt_tokens: int | None = None
    at: float | None = None
    blocks: Sequence[int] = ()  # ids of its blocks of 512 tokens; equal ids are equal tokens


@dataclass(frozen=True, slots=True)
class Load:
    """Everything that decides what is sent. Exactly one of `rate` (open loop) and `concurrency` (closed loop)
    is set, but for a trace with times of its own, which has neither.

    `burstiness` is the coefficient of variation of gamma arrivals: 1 is Poisson, above it comes in bursts.
    `prefix_share` is the part of each prompt that it has in common with others, from one of `prefixes` texts.
    """

    model: str
    endpoint: Endpoint = "chat"
    arrivals: Arrivals = "poisson"
    rate: float | None = None  # requests per second
    burstiness: float = 2.0
    concurrency: int | None = None
    ramp: float = 0.0  # seconds over which the clients of a closed loop begin, one after the other
    requests: int | None = None
    duration: float | None = None  # seconds in which requests arrive
    mix: LengthMix = field(default_factory=LengthMix)
    trace: Sequence[TraceLine] | None = None
    prefix_share: float = 0.0
    prefixes: int = 8
    tenants: Sequence[Tenant] = (Tenant(),)
    temperature: float = 0.0
    ignore_end: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        timed = self.arrivals == "trace"
        if (self.rate is not None) + (self.concurrency is not None) + timed != 1:
            raise BadInput("expected one of --rate, --concurrency or a --trace with times, for when to send")
        if timed and not (self.trace and all(line.at is not None for line in self.trace)):
            raise BadInput("expected a time in every line of the trace; add it, or give --rate")
        if self.requests is None and self.duration is None:
            raise BadInput("a load needs an end: give --requests or --duration")
        checks: list[tuple[str, float | None, float, float]] = [
            ("--rate", self.rate, 1e-3, MOST_RATE),
            ("--concurrency", self.concurrency, 1, MOST_IN_FLIGHT),
            ("--ramp", self.ramp, 0, MOST_SECONDS),
            ("--requests", self.requests, 1, MOST_REQUESTS),
            ("--duration", self.duration, 1e-3, MOST_SECONDS),
            ("--burstiness", self.burstiness, 0.05, 20),
            ("--prefix-share", self.prefix_share, 0, 1),
            ("--prefixes", self.prefixes, 1, 10_000),
            ("--temperature", self.temperature, 0, 100),
        ]
        for name, value, low, high in checks:
            if value is not None and not (isfinite(value) and low <= value <= high):
                raise BadValue(f"{name} must be from {low:g} to {high:g}, got {value:g}")
        if self.ramp and self.concurrency is None:
            raise BadInput("--ramp spreads the clients of a closed loop; add --concurrency")
        self._check_size()

    def _check_size(self) -> None:
        if self.requests is None and self.rate is not None and self.duration is not None:
            expected = self.rate * self.duration
            if expected > MOST_REQUESTS:
                raise BadValue(
                    f"--rate times --duration must be at most {MOST_REQUESTS:,} requests, got {expected:,.0f}"
                )
        if self.trace is not None and self.requests is not None and self.requests > len(self.trace):
            raise BadValue(
                f"--requests must be at most the {len(self.trace)} of the trace, got {self.requests}"
            )
        if not self.tenants or not all(isfinite(t.weight) and t.weight > 0 for t in self.tenants):
            raise BadValue("the weight of a --key must be above 0")
        names = [tenant.name for tenant in self.tenants]
        if len(set(names)) < len(names):
            raise BadValue(f"the names of keys must differ, got {', '.join(names)}")

    @property
    def expected_requests(self) -> int | None:
        """How many there will be, about; None if only a closed loop's answers will tell."""
        if self.requests is not None:
            return self.requests
        if self.trace is not None:
            return len(self.trace)
        return round(self.rate * (self.duration or 0)) if self.rate else None


def arrivals(load: Load) -> Iterator[float]:
    """Times of arrival in seconds from the start, without end (a trace's end with it)."""
    if load.arrivals == "trace":
        first = min(line.at or 0.0 for line in load.trace or ())
        yield from sorted((line.at or 0.0) - first for line in load.trace or ())
        return
    assert load.rate is not None
    random = Random(f"arrivals {load.seed}")
    shape = 1 / load.burstiness**2  # of a gamma distribution with that coefficient of variation
    now = 0.0
    while True:
        yield now
        if load.arrivals == "constant":
            now += 1 / load.rate
        elif load.arrivals == "poisson":
            now += random.expovariate(load.rate)
        else:
            now += random.gammavariate(shape, 1 / (shape * load.rate))


def plan(load: Load) -> Iterator[Planned]:
    """The requests in the order of their arrival; ends at `requests`, `duration` or the trace's end.

    In a closed loop nothing knows yet how long answers take, so there the caller ends it at `duration`.
    """
    lines = None if load.trace is None else sorted(load.trace, key=lambda line: line.at or 0.0)
    times = arrivals(load) if load.concurrency is None else None
    last = min(load.requests or MOST_REQUESTS, MOST_REQUESTS if lines is None else len(lines))
    for index in range(last):
        at = None if times is None else next(times)
        if at is not None and load.duration is not None and at >= load.duration:
            return
        yield request(load, index, at, None if lines is None else lines[index])


def request(load: Load, index: int, at: float | None = None, line: TraceLine | None = None) -> Planned:
    """Request `index` of a load. Negative ones warm up: their words are those of no other request."""
    random = Random(f"request {load.seed} {index}")
    tenant = random.choices(load.tenants, [tenant.weight for tenant in load.tenants])[0]
    if line is None:
        n_prompt, n_output = load.mix.draw(random)
        line = TraceLine(n_output, prompt_tokens=n_prompt)
    body: dict[str, Any] = {"model": load.model, **_prompt(load, random, line)}
    body |= {
        "max_tokens": line.output_tokens,
        "temperature": load.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
        # of sampling; the same in every run, as the words are
        "seed": random.getrandbits(31),
    }
    if load.ignore_end:
        body["ignore_eos"] = True
    return Planned(index, at, tenant, body)


def _prompt(load: Load, random: Random, line: TraceLine) -> dict[str, Any]:
    if line.messages is not None and load.endpoint == "chat":
        return {"messages": list(line.messages)}
    if line.messages is not None:
        raise BadInput("the trace has messages, which --endpoint completions cannot take; use chat")
    text = line.prompt
    if text is None:
        n_prefix = round(load.prefix_share * (line.prompt_tokens or 0))
        prefix = f"prefix {load.seed} {random.randrange(load.prefixes)}"
        text = content(line.prompt_tokens or 0, random, n_prefix, prefix, line.blocks)
    return {"messages": [{"role": "user", "content": text}]} if load.endpoint == "chat" else {"prompt": text}
