"""Llama Guard on our own engine, without a server: a Classifier (puna.safety.verdict) over an LLM.

    guard = LlamaGuard(LLM("llama-guard-3-8b"))
    verdicts = await guard.judge([[("user", "How do I …?")]])

All conversations are in the engine at once, which batches them. Each costs one prefill and one or two steps
for the score, and more only where it is unsafe, for the categories.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from puna.core import BadInput, Request
from puna.safety.llama_guard import Category, Guard, Version, build, find, guard_of, verdict
from puna.safety.llama_guard.reading import guard_for, params_of, version_of
from puna.safety.verdict import Turn, Verdict

if TYPE_CHECKING:
    from puna.engine.bridge import AsyncStream
    from puna.llm.model import LLM

_Made = TypeVar("_Made")


class LlamaGuard:
    """A guard model as a Classifier.

    It is asked by its checkpoint's own chat template. With `version` (an id or a name of the catalog), or
    with `categories` (puna.safety.llama_guard.chosen) where the template is known, by the prompt that we
    build. `is_held` lets it say nothing but an answer of a guard, as it should; a guard that is not held and
    says something else is an error, and so is whatever it cannot judge.

    Raises BadInput for a model that has no guard's template where no version is named, and for categories
    of a template that is none of the releases'.
    """

    def __init__(
        self,
        llm: LLM,
        *,
        version: str | None = None,
        categories: Sequence[Category] | None = None,
        name: str | None = None,
        is_held: bool = True,
    ) -> None:
        self._llm, self._categories = llm, categories
        self._name = name or llm.path.stem
        self._version = self._named(version)
        self._own = None if self._version else guard_of(llm.tokenizer)
        self._compiler = None
        if is_held:
            from puna.engine.grammar import GrammarCompiler  # takes the whole vocabulary apart

            self._compiler = GrammarCompiler(llm.tokenizer, llm.config.vocab_size)

    @property
    def name(self) -> str:
        """That of the model's file, unless another was given."""
        return self._name

    def _named(self, version: str | None) -> Version | None:
        """The version whose prompt is built here; None: the template makes it."""
        if version is not None:
            return find(version)
        if guard_of(self._llm.tokenizer) is None:
            raise BadInput(
                f"{self._name} has no guard's chat template, so that nothing says what it was taught to look "
                "for; name a version (--prompt), such as llama-guard-3-8b, or take a guard model"
            )
        if self._categories is None:
            return None
        found = version_of(self._llm.tokenizer)
        if found is None:
            raise BadInput(
                f"the chat template of {self._name} is none of Meta's, whose categories could be exchanged; "
                "name the version whose prompt it knows, such as llama-guard-3-8b, or leave the categories"
            )
        return found

    async def judge(self, conversations: Sequence[Sequence[Turn]]) -> Sequence[Verdict]:
        """What it says of the last turn of each, in their order.

        Raises BadInput, with the number of the conversation, for what the guard cannot be shown or what is
        too long for it; BadValue for an answer that is none, EngineClosed.
        """
        asked = await asyncio.to_thread(
            lambda: [_numbered(i, self._request, turns) for i, turns in enumerate(conversations)]
        )
        streams: list[AsyncStream] = []
        try:
            for i, (request, _) in enumerate(asked):
                streams.append(_numbered(i, self._llm.submit, request))
            answers = [await stream.result() for stream in streams]
        finally:
            for stream in streams:
                stream.close()
        return [
            _numbered(i, verdict, guard, answer.text, answer.logprobs or ())
            for i, ((_, guard), answer) in enumerate(zip(asked, answers, strict=True))
        ]

    def _request(self, turns: Sequence[Turn]) -> tuple[Request, Guard]:
        if self._version is None:
            guard = self._own
            assert guard is not None
            request = self._llm.chat_request(guard.conversation(turns), params_of(guard))
        else:
            request, guard = self._built(self._version, turns)
        if self._compiler is not None:
            request.grammar = self._compiler.regex(guard.pattern).start()
        return request, guard

    def _built(self, version: Version, turns: Sequence[Turn]) -> tuple[Request, Guard]:
        llm = self._llm
        prompt = build(version, turns, categories=self._categories)
        guard = guard_for(prompt, llm.tokenizer)
        messages = [{"role": role, "content": content} for role, content in turns]
        return llm.placed_request(messages, prompt.ids, params_of(guard)), guard


def _numbered(i: int, work: Callable[..., _Made], *given: Any) -> _Made:
    """What `work` makes; what is wrong is told with the number of the conversation."""
    try:
        return work(*given)
    except BadInput as error:
        raise type(error)(f"conversation {i + 1}: {error}") from None
