"""The models of a server, in memory while they are needed: loaded on demand within a budget, unloaded when
others need the room or when nobody has asked for them for a while.

All state belongs to the event loop; loading and unloading run in other threads, one at a time, in the order
in which they were asked for. A model in use is never unloaded: where a waiting one has no room beside those
in use, the least recently used of these get no new requests until it is loaded: nobody waits for ever.

budget.py says how much memory a model gets; resident.py is what the loop knows of one.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from puna.core import (
    Cancelled,
    DoesNotFit,
    EngineClosed,
    NotPulled,
    PunaError,
    UnknownModel,
    WorkFailed,
    closest,
)
from puna.llm.budget import Budget, Loader
from puna.llm.load import return_freed_memory
from puna.llm.model import LLM
from puna.llm.resident import InUse, Resident, file_bytes
from puna.server.logs import event
from puna.server.served import ModelCard, ModelFacts

_log = logging.getLogger("puna.models")

T = TypeVar("T")
Place = tuple[str, Path]  # what requests call a model, and where it is


class ModelPool:
    """server.served.Models over `models`, the first of which is the default.

    `find` says where a model of another name is, or None, and `others` lists those. Models are unloaded after
    `idle_s` seconds without a request; 0: never.
    """

    def __init__(
        self,
        models: Sequence[Place],
        loader: Loader,
        budget: Budget,
        *,
        idle_s: float = 0.0,
        find: Callable[[str], Place | None] = lambda name: None,
        others: Callable[[], Sequence[Place]] = lambda: (),
    ) -> None:
        self._residents = {name: Resident(name, path) for name, path in models}
        self._named = tuple(self._residents)
        self._loader = loader
        self._budget = budget
        self._idle_s = idle_s
        self._find, self._others = find, others
        self._facts: dict[Path, ModelFacts] = {}
        self._lock = asyncio.Lock()  # whoever loads or unloads; first come, first served
        self._changed = asyncio.Event()  # somebody has stopped using a model, or waiting for one
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = threading.Event()  # loading threads ask for it

    @property
    def default(self) -> str:
        return self._named[0]

    @property
    def only(self) -> str | None:
        """The name of the model where there is one alone."""
        return self.default if len(self._residents) == 1 else None

    @property
    def used_bytes(self) -> int:
        """Of the budget, by all models in memory and the one that is being loaded."""
        return sum(resident.n_bytes for resident in self._residents.values())

    def preload(self) -> None:
        """Load the named models in their order, as many as fit beside each other, before there is a loop.

        Raises what is wrong with any of them, and DoesNotFit for one that never will.
        """
        for resident in self._residents.values():
            least, most = self._measure(resident)
            self._budget.check(resident.name, least)
            room = self._budget.room(least, most, self.used_bytes)
            if room is None or room >= least:
                model, failed = self._loaded(resident, room)
                resident.settle(model)
                for error in failed:
                    raise error

    def cards(self) -> list[ModelCard]:
        listed = {resident.name: resident.path for resident in self._residents.values()}
        listed = {**listed, **{name: path for name, path in self._others() if name not in listed}}
        residents = (self._residents.get(name) or Resident(name, path) for name, path in listed.items())
        return [card for resident in residents if resident.path.exists() for card in resident.cards()]

    def loaded(self) -> dict[str, LLM]:
        """See server.served.Models.loaded."""
        ready = [(r.name, r.model) for r in [*self._residents.values()] if r.is_ready]
        return {name: model for name, model in ready if model is not None}

    async def facts(self, name: str) -> ModelFacts:
        """See server.served.Models.facts. The files are read at the first time."""
        path = self.resident(name).path
        if path not in self._facts:
            self._facts[path] = await asyncio.to_thread(self._loader.facts, path)
        return self._facts[path]

    def hold(self, name: str) -> InUse | None:
        """A model that is in memory; None where use() has to bring it first. Raises UnknownModel."""
        resident = self.resident(name)
        return self._held(resident) if resident.is_ready else None

    async def use(self, name: str) -> InUse:
        """A model, brought into memory first if need be. Cancelled, it leaves nothing behind.

        Raises UnknownModel, NotPulled or DoesNotFit; WorkFailed where it cannot be loaded; EngineClosed where
        the server shuts down first.
        """
        resident = self.resident(name)
        if resident.is_ready:
            return self._held(resident)
        if self._is_stopping.is_set():
            raise EngineClosed("the server is shutting down; try another one, or again in a moment")
        waiter: asyncio.Future[InUse] = asyncio.get_running_loop().create_future()
        resident.waiters.append(waiter)
        if len(resident.waiters) == 1:
            self._spawn(self._bring(resident))
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().release()
            raise
        finally:
            with suppress(ValueError):
                resident.waiters.remove(waiter)
            self._changed.set()

    async def unload(self, name: str) -> bool:
        """See server.served.Models.unload."""
        resident = self.resident(name)
        async with self._lock:
            if resident.is_idle:
                await self._unload(resident)
            return resident.model is None

    def let_go(self, name: str) -> None:
        """See server.served.Models.let_go."""
        resident = self.resident(name)
        resident.is_let_go = True
        self._rest(resident)

    def start(self) -> None:
        """The event loop runs: from now on, models that nobody uses grow idle."""
        for resident in self._residents.values():
            self._rest(resident)

    async def stop(self) -> None:
        """Give up loading; whoever waits hears of it."""
        self._is_stopping.set()
        for resident in self._residents.values():
            resident.fail(lambda: EngineClosed("the server shut down before the model was loaded; ask again"))
            resident.stop_timer()
        self._changed.set()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def close(self) -> None:
        """Close every model, once the event loop has ended or where there never was one."""
        self._is_stopping.set()
        for resident in self._residents.values():
            if resident.model is not None:
                resident.model.close()

    def check_room_for_adapter(self, name: str, path: Path) -> None:
        """Raise DoesNotFit where an adapter is more than the models in memory leave."""
        self._budget.check_rest(name, file_bytes(path), self.used_bytes)

    # what follows to _tick runs in any thread

    def _measure(self, resident: Resident) -> tuple[int, int]:
        """Bytes that a model and its adapters take at least and at most."""
        least, most = self._loader.measure(resident.path)
        return least + resident.adapter_bytes, most + resident.adapter_bytes

    def _loaded(self, resident: Resident, room: int | None) -> tuple[LLM, list[PunaError]]:
        """A model with its adapters, and what is wrong with some of these."""
        adapters, own = dict(resident.adapters), None if room is None else room - resident.adapter_bytes
        began_at = perf_counter()
        model = self._loader.load(resident.path, own, self._tick)
        failed: list[PunaError] = []
        for name, path in adapters.items():
            try:
                model.load_adapter(name, path)
            except PunaError as error:
                failed.append(error)
        seconds = round(perf_counter() - began_at, 3)
        event("load", model=resident.name, seconds=seconds, memory_bytes=model.memory_bytes)
        return model, failed

    def _tick(self, *progress: object) -> None:
        """A loading thread has loaded some more."""
        if self._is_stopping.is_set():
            raise Cancelled("loading was interrupted")

    # what follows runs in the event loop

    def resident(self, name: str) -> Resident:
        """What there is to know of a model. Raises UnknownModel."""
        found = self._residents.get(name)
        if found is not None and (name in self._named or not found.is_blank):
            return found
        place = self._find(name)
        if place is None:
            known = [card.name for card in self.cards()]
            raise UnknownModel(
                f"there is no model {name!r} here{closest(name, known)}; this server has {', '.join(known)}"
            )
        canonical, path = place
        found = self._residents.get(canonical)
        if found is None or (canonical not in self._named and found.is_blank):
            found = self._residents[canonical] = Resident(canonical, path)
        return found

    def _held(self, resident: Resident) -> InUse:
        resident.stop_timer()
        resident.is_let_go = False
        return resident.hold(self.released)

    def released(self, resident: Resident) -> None:
        """Somebody has stopped using it."""
        if not resident.n_users:
            self._changed.set()
            self._rest(resident)

    def _rest(self, resident: Resident) -> None:
        """Unload a model once it has been idle for long enough."""
        idle_s = 0.0 if resident.is_let_go else self._idle_s or None
        if idle_s is not None and resident.is_idle and not self._is_stopping.is_set():
            resident.stop_timer()
            loop = asyncio.get_running_loop()
            resident.timer = loop.call_later(idle_s, lambda: self._spawn(self._reap(resident)))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reap(self, resident: Resident) -> None:
        async with self._lock:
            if resident.is_idle and resident.timer is not None:
                await self._unload(resident)

    async def _bring(self, resident: Resident) -> None:
        """Load a model and hand it to all who wait for it, or tell them why not."""
        async with self._lock:
            if resident.is_wanted and not resident.is_ready:
                problem = await self._load(resident)
                if problem is not None:
                    resident.fail(lambda: problem)
            for waiter in resident.take_waiters():
                waiter.set_result(self._held(resident))
            self._rest(resident)

    async def _load(self, resident: Resident) -> PunaError | None:
        """What went wrong; None where the model is in memory, or nobody wants it any more."""
        if resident.model is not None:  # it broke; those who use it hear of that soon
            await self._until(lambda: not resident.n_users or not resident.is_wanted)
            if not resident.is_wanted:
                return None
            await self._unload(resident)
        measured = await _outcome(self._measure, resident)
        if isinstance(measured, BaseException):
            return _explained(resident.name, measured)
        try:
            self._budget.check(resident.name, measured[0])
        except DoesNotFit as error:
            return error
        if not await self._make_room(resident, *measured):
            return None
        loaded = await self._load_into(resident, *measured)
        while isinstance(loaded, DoesNotFit) and (other := self._longest_idle()) is not None:
            await self._unload(other)  # others than us have taken memory meanwhile
            loaded = await self._load_into(resident, *measured)
        if isinstance(loaded, BaseException):
            return _explained(resident.name, loaded)
        resident.settle(loaded)
        return None

    async def _load_into(self, resident: Resident, least: int, most: int) -> LLM | BaseException:
        room = self._budget.room(least, most, self.used_bytes)
        resident.n_bytes = room or 0
        loaded = await _outcome(self._loaded, resident, room)
        resident.n_bytes = 0
        if isinstance(loaded, BaseException):
            return loaded
        model, failed = loaded
        for error in failed:
            _log.error("an adapter of %s could not be loaded: %s", resident.name, error)
        for adapter in [a for a in model.adapters.all if a.name not in resident.adapters]:
            await _outcome(model.unload_adapter, adapter.name)  # it was taken away meanwhile
        return model

    async def _make_room(self, wanted: Resident, least: int, most: int) -> bool:
        """Unload idle models for what `wanted` would like, and used ones for what it needs.

        False if nobody waits for it any more.
        """
        total, target = self._budget.total, self._budget.target(least, most)
        if total is None or target is None:
            return True
        while total - self.used_bytes < target and (idle := self._longest_idle()) is not None:
            await self._unload(idle)
        leaving: list[Resident] = []
        while wanted.is_wanted and total - self.used_bytes < least:
            self._mark(leaving, least - (total - self.used_bytes))
            await self._until(lambda: not wanted.is_wanted or not all(r.n_users for r in leaving))
            for resident in [r for r in leaving if not r.n_users and wanted.is_wanted]:
                leaving.remove(resident)
                await self._unload(resident)
        for resident in leaving:  # stays after all
            resident.is_leaving = False
            self._rest(resident)
        return wanted.is_wanted

    def _mark(self, leaving: list[Resident], n_bytes: int) -> None:
        """Add the least recently used models to `leaving`, until they have `n_bytes` together."""
        loaded = [r for r in self._residents.values() if r.model is not None and r not in leaving]
        for resident in sorted(loaded, key=lambda r: r.last_used):
            if sum(r.n_bytes for r in leaving) < n_bytes:
                resident.is_leaving = True
                leaving.append(resident)

    def _longest_idle(self) -> Resident | None:
        idle = [resident for resident in self._residents.values() if resident.is_idle]
        return min(idle, key=lambda resident: resident.last_used, default=None)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        """For whoever has the lock: wait until somebody stops using a model, or waiting, and it is so."""
        while not is_so():
            self._changed.clear()
            await self._changed.wait()

    async def _unload(self, resident: Resident) -> None:
        """For whoever has the lock. Its bytes count until they are free."""
        assert not resident.n_users
        resident.is_leaving = True
        resident.stop_timer()
        began_at = perf_counter()
        model, resident.model = [resident.model], None
        await _outcome(_close, model)
        event("unload", model=resident.name, seconds=round(perf_counter() - began_at, 3))
        resident.n_bytes, resident.is_leaving, resident.is_let_go = 0, False, False


def _close(model: list[LLM | None]) -> None:
    """Close a model to which nobody else refers, and give its memory back to the system."""
    found = model.pop()
    if found is not None:
        found.close()
    del found
    return_freed_memory()


async def _outcome(function: Callable[..., T], *args: Any) -> T | BaseException:
    """What a function returns or raises in another thread: whatever goes wrong there, the loop goes on."""
    task = asyncio.ensure_future(asyncio.to_thread(function, *args))
    await asyncio.wait({task})
    error = task.exception()
    return task.result() if error is None else error


def _explained(name: str, error: BaseException) -> PunaError:
    """What those who wait for a model get to hear. A bad file is no fault of theirs."""
    if isinstance(error, DoesNotFit | NotPulled | UnknownModel):
        return error
    if isinstance(error, Cancelled):
        return EngineClosed("the server shut down before the model was loaded; ask again")
    _log.error("%s could not be loaded", name, exc_info=error)
    failed = WorkFailed(f"{name} could not be loaded, the server's log says why; use another model")
    failed.__cause__ = error
    return failed
