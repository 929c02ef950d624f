"""The models that a server serves: loaded before the first request, known by the names that requests use."""

from __future__ import annotations

from asyncio import to_thread
from collections.abc import Mapping
from dataclasses import dataclass

from puna.core import UnknownModel, closest
from puna.llm.facts import facts_of
from puna.llm.model import LLM
from puna.server.served import ModelCard, ModelFacts


@dataclass(frozen=True, slots=True)
class InUse:
    """A model that a call holds on to."""

    name: str
    model: LLM

    def __enter__(self) -> LLM:
        return self.model

    def __exit__(self, *exc: object) -> None: ...


class LoadedModels:
    """server.served.Models over models in memory; the first one is the default."""

    def __init__(self, models: Mapping[str, LLM]) -> None:
        self._models = dict(models)
        self._facts: dict[str, ModelFacts] = {}
        self._cards = [_card(name, model) for name, model in self._models.items()]

    @property
    def default(self) -> str:
        return next(iter(self._models))

    def cards(self) -> list[ModelCard]:
        return self._cards

    def loaded(self) -> dict[str, LLM]:
        return self._models

    async def facts(self, name: str) -> ModelFacts:
        """See server.served.Models.facts. The files are read at the first time."""
        if name not in self._facts:
            model = self._find(name)
            self._facts[name] = await to_thread(facts_of, model.path, model.tokenizer, model.chat_format)
        return self._facts[name]

    async def use(self, name: str) -> InUse:
        return InUse(name, self._find(name))

    def _find(self, name: str) -> LLM:
        model = self._models.get(name)
        if model is None:
            known = list(self._models)
            raise UnknownModel(
                f"there is no model {name!r} here{closest(name, known)}; this server has {', '.join(known)}"
            )
        return model

    def close(self) -> None:
        for model in self._models.values():
            model.close()


def _card(name: str, model: LLM) -> ModelCard:
    found = model.path.stat()
    return ModelCard(name, int(found.st_mtime), found.st_size, model.context)
