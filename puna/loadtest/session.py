"""A whole load test: the model's name, warming up, the load, the report."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from puna.core import BadValue, WorkFailed
from puna.loadtest.client import Client
from puna.loadtest.load import MOST_IN_FLIGHT, Load, Planned
from puna.loadtest.report import Report
from puna.loadtest.run import Tick, run_load, warm_up
from puna.loadtest.stats import Outcome, Targets
from puna.loadtest.target import Target


@dataclass(frozen=True, slots=True)
class Session:
    """How a load is sent and judged; what is sent is the `Load`."""

    timeout: float = 600.0  # seconds of one request
    warmup: int = 0  # requests before the load that count nowhere
    max_in_flight: int = 1024
    targets: Targets = field(default_factory=Targets)
    stop_on_interrupt: bool = False  # Ctrl-C ends the load and reports; needs the main thread

    def __post_init__(self) -> None:
        checks: list[tuple[str, float, float, float]] = [
            ("--timeout", self.timeout, 0.01, 86_400),
            ("--warmup", self.warmup, 0, 1000),
            ("--max-in-flight", self.max_in_flight, 1, MOST_IN_FLIGHT),
            ("--target-ttft", self.targets.ttft * 1e3, 0.001, 1e7),
            ("--target-tpot", self.targets.tpot * 1e3, 0.001, 1e7),
        ]
        for name, value, low, high in checks:
            if not low <= value <= high:
                raise BadValue(f"{name} must be from {low:g} to {high:g}, got {value:g}")


def first_model(target: Target, key: str | None = None, timeout: float = 30.0) -> str:
    """The first of the server's /v1/models. Raises WorkFailed."""

    async def ask() -> str:
        client = Client(target, timeout)
        try:
            names = await client.models(key)
        finally:
            client.close()
        if not names:
            raise WorkFailed(f"{target.authority} must have a model, found none; load one or give --model")
        return names[0]

    return asyncio.run(ask())


def _quiet(outcome: Outcome) -> None: ...


def measure(target: Target, load: Load, session: Session | None = None, tick: Tick = _quiet) -> Report:
    """Run the load against the target; `tick` is called with every request that ended.

    Raises WorkFailed if no request of the warm-up was answered.
    """
    return asyncio.run(_measure(target, load, session or Session(), tick))


async def _measure(target: Target, load: Load, session: Session, tick: Tick) -> Report:
    client = Client(target, session.timeout)

    async def send(planned: Planned, start: float, due: float) -> Outcome:
        return await client.send(planned, load.endpoint, start, due)

    stop = asyncio.Event()
    with ExitStack() as stack:
        stack.callback(client.close)
        warm = await warm_up(load, send, session.warmup)
        if warm and all(outcome.error for outcome in warm):
            raise WorkFailed(
                f"{target.authority} must answer the warm-up, found {warm[0].error}: {warm[0].detail}"
            )
        if session.stop_on_interrupt:
            stack.callback(_stop_at_interrupt(stop))
        began, cpu = time.time(), time.process_time()
        run = await run_load(load, send, stop, tick, session.max_in_flight)
        cpu = time.process_time() - cpu
        return Report(target.authority + target.base, load, session.targets, run, began, cpu)


def _stop_at_interrupt(stop: asyncio.Event) -> Callable[[], object]:
    """Let the first Ctrl-C set `stop`; the second interrupts as usual."""
    loop = asyncio.get_running_loop()

    def first() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        stop.set()

    loop.add_signal_handler(signal.SIGINT, first)
    return lambda: loop.remove_signal_handler(signal.SIGINT)
