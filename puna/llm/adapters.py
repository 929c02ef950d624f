"""The adapters of a loaded model by their names; the engine knows numbers."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from puna.core import BadValue, UnknownModel, closest
from puna.engine.bridge import EngineThread
from puna.model.config import ModelConfig
from puna.weights.adapter import read_adapter


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    name: str
    path: Path
    number: int  # in requests; never used again for another one: prefix caches are kept apart by it
    rank: int  # of its largest matrices
    n_bytes: int
    fingerprint: str  # equal for equal adapters


class Adapters:
    """Loads and unloads adapters while the model runs. Safe from any thread."""

    def __init__(self, engine: EngineThread, config: ModelConfig) -> None:
        self._engine, self._config = engine, config
        self._loaded: dict[str, LoadedAdapter] = {}
        self._numbers = count(1)
        self._lock = threading.Lock()

    @property
    def all(self) -> list[LoadedAdapter]:
        return list(self._loaded.values())

    def load(self, name: str, path: Path) -> LoadedAdapter:
        """Read an adapter and let requests have it.

        Raises BadFile or Unsupported for the file, BadValue for a name that is taken.
        """
        with self._lock:
            if name in self._loaded:
                raise BadValue(
                    f"an adapter {name!r} is loaded already; unload it first, or choose another name"
                )
            read = read_adapter(path, self._config)
            number = next(self._numbers)
            prepared = self._engine.prepare_adapter(read)
            self._engine.run(lambda engine: engine.adapters.load(number, prepared))
            found = LoadedAdapter(name, path, number, read.rank, read.n_bytes, read.fingerprint)
            self._loaded[name] = found
            return found

    def unload(self, name: str) -> None:
        """No new request gets it; those that have it end with it. Raises UnknownModel."""
        with self._lock:
            number = self.get(name).number
            del self._loaded[name]
            self._engine.run(lambda engine: engine.adapters.unload(number))

    def get(self, name: str) -> LoadedAdapter:
        found = self._loaded.get(name)
        if found is None:
            known = list(self._loaded)
            listed = f"there are {', '.join(known)}" if known else "there is none"
            raise UnknownModel(f"no adapter {name!r} is loaded{closest(name, known)}; {listed}")
        return found
