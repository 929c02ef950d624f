"""Guard models that the server has: how one is asked, for /v1/moderations and for policies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from puna.core import BadValue, PromptTooLong, Request
from puna.safety.llama_guard import Guard, guard_of, verdict
from puna.safety.llama_guard.reading import params_of
from puna.safety.policy import GUARD
from puna.safety.verdict import Turn, Verdict
from puna.server.generation import Generation, Whole
from puna.server.served import Models, ServedModel
from puna.server.structured import compiled

Beside = Callable[..., Coroutine[Any, Any, Any]]
_OVERLAP = 200  # characters that two halves of a text have in common

_guards: WeakKeyDictionary[ServedModel, Guard] = WeakKeyDictionary()


def guard(model: ServedModel) -> Guard:
    """What is to be known of a guard model. Raises BadInput for another one, or a template of no use."""
    found = _guards.get(model)
    if found is None:
        made = guard_of(model.tokenizer)
        if made is None:
            raise BadValue("the model is no guard, its chat template has no categories")
        found = _guards.setdefault(model, made)
    return found


def guard_request(model: ServedModel, turns: Sequence[Turn]) -> Request:
    """The question of what the last of the turns is. Takes a while; raises BadInput."""
    asked = guard(model)
    request = model.chat_request(asked.conversation(turns), params_of(asked))
    request.grammar = compiled(model, "regex", asked.pattern).start()
    return request


@dataclass(frozen=True, slots=True)
class Caller:
    """For whom a guard is asked: its work is theirs where it waits and what it finds in the cache."""

    tenant: str = ""
    cache_salt: str = ""
    priority: int = 0


class ServedGuard:
    """A guard model as a classifier, for one call."""

    def __init__(self, models: Models, model: str, caller: Caller, beside: Beside) -> None:
        """`beside` does something beside the event loop."""
        self.name = GUARD + model
        self._models = models
        self._beside = beside
        self._model = model
        self._caller = caller

    async def judge(self, conversations: Sequence[Sequence[Turn]]) -> Sequence[Verdict]:
        """Where a conversation is longer than the guard's context, its oldest turns are left out; what is
        to be judged is never cut, but judged in parts. Raises PunaError.
        """
        held = self._models.hold(self._model) or await self._models.use(self._model)
        with held as model:
            return await asyncio.gather(*(self._judge(model, turns) for turns in conversations))

    async def _judge(self, model: ServedModel, turns: Sequence[Turn]) -> Verdict:
        while True:
            request: Request = await self._beside(guard_request, model, turns)
            if len(request.prompt) + (request.params.max_tokens or 0) <= min(
                model.context, model.cache_tokens
            ):
                return await self._answer(model, request)
            shorter = with_less_before(turns)
            if shorter is None:
                return await self._in_halves(model, turns)
            turns = shorter

    async def _in_halves(self, model: ServedModel, turns: Sequence[Turn]) -> Verdict:
        *before, (role, content) = turns
        if not isinstance(content, str) or len(content) <= 2 * _OVERLAP:
            raise PromptTooLong("the guard's context is too short for what is to be judged")
        middle = len(content) // 2
        halves = (content[: middle + _OVERLAP // 2], content[middle - _OVERLAP // 2 :])
        found = [await self._judge(model, [*before, (role, half)]) for half in halves]
        worst = max(found, key=lambda one: (one.is_unsafe, one.score))
        names = dict.fromkeys(name for one in found for name in one.categories)
        return Verdict(worst.is_unsafe, worst.score, tuple(names))

    async def _answer(self, model: ServedModel, request: Request) -> Verdict:
        request.tenant, request.cache_salt = self._caller.tenant, self._caller.cache_salt
        request.priority = self._caller.priority
        generation, whole = Generation(model.submit(request)), Whole()
        try:
            async for piece in generation.pieces():
                whole.add(piece)
        finally:
            generation.close()
        return verdict(guard(model), whole.text, whole.logprobs)


def with_less_before(turns: Sequence[Turn]) -> list[Turn] | None:
    """The same with less of what was said before the last turn; None where nothing can be spared."""
    if len(turns) > 2:
        n_before = len(turns) - 1
        return list(turns[max(2, n_before // 4 * 2) :])  # pairs, half of them at a time
    if len(turns) == 2:
        (role, content), last = turns
        text = content if isinstance(content, str) else ""
        if len(text) > _OVERLAP or text != content:
            return [(role, text[max(len(text) // 2, 1) :]), last]
    return None
