"""The models of a server and their adapters, by the names that requests use: `server.served.Models` over a
ModelPool.

An adapter is called by its own name, or MODEL:NAME. It is in memory while its model is, and comes back with
it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

from puna.core import BadValue, UnknownModel, WorkFailed, closest
from puna.llm.model import LLM
from puna.llm.models import ModelPool
from puna.llm.resident import InUse, Resident
from puna.server.served import ModelCard, ModelFacts

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,95}")  # no colon: that parts a model from its adapter


class AdaptedModels:
    """All state belongs to the event loop, as the pool's."""

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool
        self._base_of: dict[str, str] = {}  # name of an adapter -> of its model
        self._coming: set[str] = set()  # names of adapters that are being loaded

    @property
    def default(self) -> str:
        return self._pool.default

    def preload(self, adapters: Sequence[tuple[str | None, str, Path]] = ()) -> None:
        """Load models, and with them adapters (model, name, path), as ModelPool.preload does."""
        for base, name, path in adapters:
            resident = self._of_new(base, name)
            resident.adapters[name] = path
            self._base_of[name] = resident.name
        self._pool.preload()

    def cards(self) -> list[ModelCard]:
        return self._pool.cards()

    def loaded(self) -> dict[str, LLM]:
        """See Models.loaded."""
        return self._pool.loaded()

    async def facts(self, name: str) -> ModelFacts:
        """See Models.facts; of an adapter, those of its model."""
        return await self._pool.facts(self._parted(name)[0])

    def hold(self, name: str) -> InUse | None:
        """See Models.hold."""
        base, adapter = self._parted(name)
        use = self._pool.hold(base)
        return use if use is None or adapter is None else self._with(use, adapter)

    async def use(self, name: str) -> InUse:
        """See Models.use."""
        base, adapter = self._parted(name)
        use = await self._pool.use(base)
        return use if adapter is None else self._with(use, adapter)

    async def unload(self, name: str) -> bool:
        """See Models.unload; of an adapter, its model."""
        return await self._pool.unload(self._parted(name)[0])

    def let_go(self, name: str) -> None:
        """See Models.let_go; of an adapter, its model."""
        self._pool.let_go(self._parted(name)[0])

    async def load_adapter(self, base: str | None, name: str, path: str) -> None:
        """See Models.load_adapter."""
        resident = self._of_new(base, name)
        self._coming.add(name)
        try:
            with await self._pool.use(resident.name) as model:
                place = Path(path).expanduser()
                self._pool.check_room_for_adapter(name, place)
                await asyncio.to_thread(model.load_adapter, name, place)
                resident.adapters[name] = place
                resident.n_bytes += model.adapters.get(name).n_bytes
                self._base_of[name] = resident.name
        finally:
            self._coming.discard(name)

    async def unload_adapter(self, name: str) -> None:
        """See Models.unload_adapter."""
        _, adapter = self._parted(name)
        if adapter is None:
            known = list(self._base_of)
            raise UnknownModel(f"there is no adapter {name!r} here{closest(name, known)}")
        resident = self._pool.resident(self._base_of.pop(adapter))
        resident.adapters.pop(adapter, None)
        if resident.model is not None:
            with resident.hold(self._pool.released) as model:
                for found in [found for found in model.adapters.all if found.name == adapter]:
                    await asyncio.to_thread(model.unload_adapter, adapter)
                    resident.n_bytes -= found.n_bytes

    def start(self) -> None:
        self._pool.start()

    async def stop(self) -> None:
        await self._pool.stop()

    def close(self) -> None:
        self._pool.close()

    def _of_new(self, base: str | None, name: str) -> Resident:
        """The model of an adapter to come. Raises BadValue or UnknownModel."""
        if base is None:
            base = self._pool.only
        if base is None:
            raise BadValue(
                f"this server has several models; say which of them the adapter {name!r} belongs to: "
                "MODEL:NAME on the command line, base_model_name in a request"
            )
        if not NAME.fullmatch(name):
            raise BadValue(f"a name must be letters, digits and . _ - /, at most 96 of them, got {name!r}")
        if name in self._base_of or name in self._coming or any(c.name == name for c in self._pool.cards()):
            raise BadValue(f"the name {name!r} is taken; choose another one, or unload what has it")
        return self._pool.resident(base)

    def _parted(self, name: str) -> tuple[str, str | None]:
        """A model, and the adapter that is meant if one is."""
        if name in self._base_of:
            return self._base_of[name], name
        base, _, adapter = name.rpartition(":")
        return (base, adapter) if base and self._base_of.get(adapter) == base else (name, None)

    def _with(self, use: InUse, adapter: str) -> InUse:
        try:
            return use.with_adapter(adapter)
        except UnknownModel as error:
            use.release()
            raise WorkFailed(
                f"the adapter {adapter!r} could not be loaded again with its model; see the server's log, "
                "and unload it or mend its file"
            ) from error
