"""A chat request in no API's words, and the call that it becomes. Every API translates its chats to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request as HttpRequest

from puna.core import Request, SamplingParams
from puna.engine.grammar import Grammar
from puna.server.calls import Call, Choices, choices
from puna.server.images import resolved, uploaded
from puna.server.safety.conversation import conversation
from puna.server.served import ServedModel
from puna.server.service import Service
from puna.server.structured import calls_only
from puna.server.tiers import Asked

Turns = Sequence[Mapping[str, Any]]


def unchanged(defaults: SamplingParams) -> SamplingParams:
    return defaults


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Which tools there are, in OpenAI's form with "strict", and how an answer may call them."""

    tools: Sequence[Mapping[str, Any]] = ()
    may_call: bool = True  # otherwise the model does not even get to see them
    required: bool = False
    named: str | None = None  # the one to call, where it is required
    parallel: bool = True

    @property
    def shown(self) -> list[dict[str, Any]] | None:
        """The tools as chat templates know them; None where there is nothing to call."""
        return [as_templates_know(tool) for tool in self.tools] if self.tools and self.may_call else None

    def grammar_for(self, model: ServedModel) -> Grammar | None:
        """What holds answers to it; None where they are free. Raises BadValue and Unsupported."""
        if not self.tools or not self.may_call:
            return None
        return calls_only(model, self.tools, required=self.required, named=self.named, parallel=self.parallel)


@dataclass(frozen=True, slots=True)
class Chat:
    """`turns` are messages as chat templates know them, with images as image_url parts (server/images.py);
    `form` is the grammar of the answer, where no call takes its place.
    """

    model: str
    turns: Turns
    sampling: Callable[[SamplingParams], SamplingParams] = unchanged  # from the model's defaults
    use: ToolUse = ToolUse()
    form: Callable[[ServedModel], Grammar | None] | None = None
    n: int = 1
    tier: Asked | None = None  # how urgent the request calls itself
    cache_salt: str | None = None  # only requests of the tenant with the same one share cached prompts
    continues: bool = False  # the last turn is an answer that was begun, and goes on
    param: str = "messages"  # the field of the request that has the turns
    limited: Callable[[ServedModel, Request], Request] | None = None  # by what its API alone has limits of
    ends_with_context: bool = False  # max_tokens may be more than there is room for: then that is the most

    async def with_images(self, service: Service, http: HttpRequest) -> Chat:
        """The same with uploaded images read and remote ones fetched: for nobody without a key. Raises
        ApiError."""
        files = uploaded(service.files, service.authenticate(http).tenant)
        turns = await resolved(service.config.image_host, self.turns, files, where=self.param)
        return replace(self, turns=turns)

    def request(self, model: ServedModel, params: SamplingParams) -> Request:
        """The prompt, for one choice. Raises BadInput."""
        return model.chat_request(
            self.turns, params, tools=self.use.shown, continue_final_message=self.continues
        )

    def choices(self, model: ServedModel) -> Choices:
        """All that the engine is asked for. Raises BadInput."""
        # a form holds all of the answer; calls that nothing is said of may stand in it, and end it
        is_free = not self.use.required and not any(_is_strict(tool) for tool in self.use.tools)
        grammar = None if self.form is not None and is_free else self.use.grammar_for(model)
        if grammar is None and self.form is not None:
            grammar = self.form(model)
        params = self.sampling(model.default_params)

        def request(chosen: SamplingParams) -> Request:
            made = self.request(model, chosen)
            if grammar is not None:
                made.grammar = grammar.start()
            if self.ends_with_context and chosen.max_tokens is not None:
                room = min(model.context, model.cache_tokens) - len(made.prompt)
                made.params = replace(chosen, max_tokens=max(1, min(room, chosen.max_tokens)))
            return made if self.limited is None else self.limited(model, made)

        return choices(request(params), self.n, request)


async def begin_chat(service: Service, http: HttpRequest, endpoint: str, chat: Chat) -> Call:
    """Start it. Raises ApiError."""
    chat = await chat.with_images(service, http)
    return await service.begin(
        http,
        endpoint,
        chat.model,
        lambda model: [chat.choices(model)],
        is_slow=True,  # a template is somebody's program: the event loop does not wait for it
        tools=chat.use.shown,
        parallel=chat.use.parallel,
        param=chat.param,
        tier=chat.tier,
        cache_salt=chat.cache_salt,
        conversations=[conversation(chat.turns, continues=chat.continues, tools=chat.use.shown)],
    )


async def n_prompt_tokens(service: Service, http: HttpRequest, chat: Chat) -> int:
    """Tokens of the prompt that begin_chat() would make. Raises ApiError."""
    chat = await chat.with_images(service, http)

    def count(model: ServedModel) -> int:
        return len(chat.request(model, chat.sampling(model.default_params)).prompt)

    return await service.ask(http, chat.model, count, is_slow=True, param=chat.param)


def _is_strict(tool: Mapping[str, Any]) -> bool:
    return tool["function"].get("strict") is True


def as_templates_know(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool in OpenAI's form, with all that templates read of it and nothing else."""
    function = {name: value for name, value in tool["function"].items() if name != "strict"}
    return {"type": "function", "function": {"description": "", "parameters": {}, **function}}
