"""What the event loop knows of one model of a server: where it is, who uses it, who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic

from puna.core import PunaError
from puna.llm.model import LLM
from puna.llm.terms import marks_of
from puna.server.served import ModelCard


@dataclass(slots=True, eq=False)
class Resident:
    """A model that is in memory, or may be brought there. Only the event loop changes it."""

    name: str
    path: Path
    model: LLM | None = None
    n_bytes: int = 0  # of the budget: those of the model, or that it is being loaded into
    n_users: int = 0
    last_used: float = 0.0  # time.monotonic()
    is_leaving: bool = False  # is being unloaded, or will be once nobody uses it: takes no new users
    is_let_go: bool = False  # leaves as soon as nobody uses it, unless somebody asks for it before
    waiters: list[asyncio.Future[InUse]] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None  # runs while the model is idle, if idle ones are unloaded
    adapters: dict[str, Path] = field(default_factory=dict)  # by name; loaded whenever the model is

    @property
    def is_ready(self) -> bool:
        """Whether it can be used at once."""
        return self.model is not None and not self.is_leaving and self.model.is_open

    @property
    def is_idle(self) -> bool:
        return self.model is not None and not self.is_leaving and not self.n_users

    @property
    def is_wanted(self) -> bool:
        return bool(self.waiters)

    @property
    def is_blank(self) -> bool:
        """Neither in memory nor on its way there: nothing would be lost with this object."""
        return self.model is None and not self.waiters and not self.n_bytes

    def settle(self, model: LLM) -> None:
        """The model is in memory."""
        self.model, self.last_used = model, monotonic()
        self.n_bytes = model.memory_bytes + sum(adapter.n_bytes for adapter in model.adapters.all)

    @property
    def adapter_bytes(self) -> int:
        """What its adapters take, near enough: their files."""
        return sum(file_bytes(path) for path in self.adapters.values())

    def hold(self, released: Callable[[Resident], None]) -> InUse:
        """Use the model until the result is released, which is told to `released`."""
        assert self.model is not None
        self.n_users += 1
        self.last_used = monotonic()
        return InUse(self.name, self.model, self, released)

    def take_waiters(self) -> list[asyncio.Future[InUse]]:
        """All who still wait; they wait for nothing any more."""
        found = [waiter for waiter in self.waiters if not waiter.done()]
        self.waiters.clear()
        return found

    def fail(self, make: Callable[[], PunaError]) -> None:
        """Tell all who wait that it comes to nothing; each gets an error of its own."""
        for waiter in self.take_waiters():
            waiter.set_exception(make())

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def card(self) -> ModelCard:
        found = self.path.stat()
        context = self.model.context if self.model is not None else None
        state = "loaded" if self.is_ready else "loading" if self.waiters else "unloaded"
        left = max(0.0, self.timer.when() - monotonic()) if self.timer is not None else None
        return ModelCard(
            self.name,
            int(found.st_mtime),
            found.st_size,
            context,
            state,
            marks=marks_of(self.path),
            idle_left_s=left,
        )

    def cards(self) -> Iterator[ModelCard]:
        """The model's, and those of its adapters."""
        own = self.card()
        yield own
        for name, path in self.adapters.items():
            marks = tuple(dict.fromkeys((*own.marks, *marks_of(path))))  # it may be made from another model
            yield replace(own, name=name, size=file_bytes(path), parent=self.name, marks=marks)


class InUse:
    """A model that somebody holds on to, until they leave it or release it."""

    def __init__(
        self, name: str, model: LLM, resident: Resident, released: Callable[[Resident], None]
    ) -> None:
        self.name = name
        self.model = model
        self._resident: Resident | None = resident
        self._released = released

    def with_adapter(self, name: str) -> InUse:
        """The same use, of the model with an adapter; released in place of this one. Raises UnknownModel."""
        self.model = self.model.with_adapter(name)
        self.name = name
        return self

    def release(self) -> None:
        """A second call does nothing."""
        resident, self._resident = self._resident, None
        if resident is not None:
            resident.n_users -= 1
            resident.last_used = monotonic()
            self._released(resident)

    def __enter__(self) -> LLM:
        return self.model

    def __exit__(self, *exc: object) -> None:
        self.release()


def file_bytes(path: Path) -> int:
    """Of an adapter; 0 where it is gone."""
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.exists())
