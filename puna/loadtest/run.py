"""Send a load in time, open or closed loop, and collect what each request met.

An open loop sends when a request is due, whatever has become of those before it, as users do who know nothing
of each other. A generator that waited for answers would ask less of a slow server and hide how slow it is
(coordinated omission). All times are the running event loop's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from puna.loadtest.load import MOST_IN_FLIGHT, Load, Planned, plan, request
from puna.loadtest.stats import Outcome

# (request, the load's start on the loop's clock, when it was due) -> what it met
Send = Callable[[Planned, float, float], Coroutine[Any, Any, Outcome]]
Tick = Callable[[Outcome], None]
_One = Callable[[Planned, float], Coroutine[Any, Any, None]]
_Tasks = set[asyncio.Task[None]]


@dataclass(slots=True)
class Run:
    """What a load met. `wall` is the time from its start to the last end, in seconds."""

    outcomes: list[Outcome] = field(default_factory=list)  # in the order of their ends
    wall: float = 0.0
    n_unfinished: int = 0  # cut off by `stop`; in no figure
    n_held: int = 0  # that were late because --max-in-flight requests were running
    interrupted: bool = False


async def warm_up(load: Load, send: Send, n: int, at_once: int = 4) -> list[Outcome]:
    """Send `n` requests that count nowhere, `at_once` at a time."""
    start = asyncio.get_running_loop().time()
    outcomes: list[Outcome] = []
    indices = iter(range(n))

    async def worker() -> None:
        for index in indices:
            line = load.trace[index % len(load.trace)] if load.trace else None
            outcomes.append(await send(request(load, -1 - index, line=line), start, 0.0))

    async with asyncio.TaskGroup() as group:
        for _ in range(min(n, at_once)):
            group.create_task(worker())
    return outcomes


async def run_load(
    load: Load, send: Send, stop: asyncio.Event, tick: Tick, max_in_flight: int = MOST_IN_FLIGHT
) -> Run:
    """Run the whole load, or until `stop` is set: then what is under way is dropped and counted."""
    start = asyncio.get_running_loop().time()
    run = Run()
    n_begun = 0

    async def one(planned: Planned, due: float) -> None:
        nonlocal n_begun
        n_begun += 1
        outcome = await send(planned, start, due)
        run.outcomes.append(outcome)
        tick(outcome)

    tasks: _Tasks = set()
    if load.concurrency is None:
        driver = asyncio.create_task(_open_loop(load, start, run, one, tasks, max_in_flight))
    else:
        driver = asyncio.create_task(_closed_loop(load, start, one, tasks))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({driver, stopping}, return_when=asyncio.FIRST_COMPLETED)
    run.interrupted = not driver.done()
    await _cancel({driver, stopping, *tasks})
    if not run.interrupted:
        driver.result()  # raises what went wrong in here
    run.n_unfinished = n_begun - len(run.outcomes)
    run.wall = max((outcome.ended for outcome in run.outcomes), default=0.0)
    return run


async def _open_loop(
    load: Load, start: float, run: Run, one: _One, tasks: _Tasks, max_in_flight: int
) -> None:
    loop = asyncio.get_running_loop()
    room = asyncio.Semaphore(max_in_flight)

    async def and_make_room(planned: Planned, due: float) -> None:
        try:
            await one(planned, due)
        finally:
            room.release()

    for planned in plan(load):
        assert planned.at is not None
        # also when late: answers have to be read, or the generator would measure itself
        await asyncio.sleep(max(0.0, start + planned.at - loop.time()))
        run.n_held += room.locked()
        await room.acquire()
        task = loop.create_task(and_make_room(planned, planned.at))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)


async def _closed_loop(load: Load, start: float, one: _One, tasks: _Tasks) -> None:
    loop = asyncio.get_running_loop()
    requests = plan(load)

    n = load.concurrency or 1

    async def client(index: int) -> None:
        await asyncio.sleep(load.ramp * index / n)
        while load.duration is None or loop.time() - start < load.duration:
            planned = next(requests, None)
            if planned is None:
                return
            await one(planned, loop.time() - start)

    tasks |= {loop.create_task(client(index)) for index in range(n)}
    await asyncio.gather(*tasks)


async def _cancel(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
