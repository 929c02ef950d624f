"""How much memory each model of a server gets, of what they may take together: arithmetic.

A model takes no more than it needs for the context and the sequences that were asked for. Where nobody asked,
its cache may grow to its share of the whole; a model that does not fit into its share gets what it needs at
least.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from puna.core import DoesNotFit
from puna.llm.load import Progress, measure
from puna.llm.memory import readable
from puna.llm.model import LLM
from puna.server.served import ModelFacts


@dataclass(frozen=True, slots=True)
class Budget:
    total: int | None  # bytes of all models together; None: nobody knows, and there is no limit
    shares: int = 1  # models that it is shared out to

    def check(self, name: str, least: int) -> None:
        """Raise DoesNotFit for a model that needs more than there is, whatever is unloaded for it."""
        if self.total is not None and least > self.total:
            raise DoesNotFit(
                f"{name} needs at least {readable(least)} of memory, and the models of this server may take "
                f"{readable(self.total)} together; ask for a smaller one, or have the operator raise --memory"
            )

    def check_rest(self, name: str, n_bytes: int, used: int) -> None:
        """Raise DoesNotFit for what needs more than models that have `used` bytes leave."""
        if self.total is not None and n_bytes > self.total - used:
            raise DoesNotFit(
                f"{name} needs {readable(n_bytes)} of memory, and {readable(self.total - used)} of the "
                f"{readable(self.total)} that models may take are free; unload something, or raise --memory"
            )

    def target(self, least: int, most: int) -> int | None:
        """Bytes that a model gets where they are free; None: as many as it wants."""
        if self.total is None:
            return None
        return min(most, max(self.total // self.shares, least))

    def room(self, least: int, most: int, used: int) -> int | None:
        """The same beside models that have `used` bytes: it may be too little."""
        target = self.target(least, most)
        return None if target is None or self.total is None else min(target, self.total - used)


class Loader(Protocol):
    """How models come into memory. Runs outside the event loop."""

    def measure(self, path: Path) -> tuple[int, int]:
        """Bytes that a model takes at least and at most. Raises what is wrong with the file."""
        ...

    def load(self, path: Path, room: int | None, progress: Progress) -> LLM:
        """Load a model into at most `room` bytes; it is given up where `progress` raises."""
        ...

    def facts(self, path: Path) -> ModelFacts:
        """What the files of a model say, without loading it. Raises what is wrong with them."""
        ...


class LLMLoader:
    """Loads every model with the same options, those of LLM."""

    def __init__(self, **options: Any) -> None:
        self._options = options

    def measure(self, path: Path) -> tuple[int, int]:
        from puna.llm.config import LLMConfig

        return measure(path, LLMConfig(**self._options))

    def load(self, path: Path, room: int | None, progress: Progress) -> LLM:
        model = LLM(path, **self._options, memory=room, progress=progress)
        model.speed.measure()  # the machine's limits, once for all models of as many threads
        return model

    def facts(self, path: Path) -> ModelFacts:
        from puna.llm.facts import facts_of

        return facts_of(path, self._options.get("chat_format"))
