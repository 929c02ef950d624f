"""What a request to /v1/responses says, checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from fastapi import Query
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from puna.core import SamplingParams
from puna.engine.grammar import Grammar
from puna.server.chats import Chat, ToolUse, Turns
from puna.server.openai.fields import Body, Sampler
from puna.server.openai.formats import JsonObject, PlainText, Schema
from puna.server.openai.responses.items import InputItem
from puna.server.served import ServedModel
from puna.server.structured import compiled

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
Included = Literal[
    "message.output_text.logprobs", "message.input_image.image_url", "reasoning.encrypted_content"
]
Include = Annotated[
    list[Included] | None, Query()
]  # of a path that tells what is kept, which is all there is
Id = Annotated[str, Field(min_length=1, max_length=64)]


class FunctionTool(Body):
    harmless: ClassVar[tuple[str, ...]] = ("defer_loading", "allowed_callers")
    type: Literal["function"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def as_chat(self) -> dict[str, Any]:
        """As the chat API and text.call_grammar write it."""
        function = self.model_dump(exclude={"type"}, exclude_none=True)
        return {"type": "function", "function": function}


class NamedTool(Body):
    type: Literal["function"]
    name: str


class AllowedTools(Body):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1)]


ToolChoice = (
    Literal["none", "auto", "required"] | Annotated[NamedTool | AllowedTools, Field(discriminator="type")]
)


class JsonSchema(Schema):
    """Flat, unlike the chat API's. Constrained whether `strict` or not."""

    type: Literal["json_schema"]

    def grammar_for(self, model: ServedModel) -> Grammar | None:
        return compiled(model, "json_schema", self.schema_)


class Text(Body):
    harmless: ClassVar[tuple[str, ...]] = ("verbosity",)
    format: Annotated[PlainText | JsonObject | JsonSchema, Field(discriminator="type")] | None = None


class StreamOptions(Body):
    harmless: ClassVar[tuple[str, ...]] = ("include_obfuscation",)


class ConversationId(Body):
    id: Id


class Context(Body):
    """What decides the prompt; what /v1/responses/input_tokens counts."""

    model: Annotated[str, Field(min_length=1)]
    input: str | Annotated[list[InputItem], Field(max_length=10_000)] | None = None
    instructions: str | None = None
    previous_response_id: Id | None = None
    conversation: Id | ConversationId | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    truncation: str | None = None

    @model_validator(mode="after")
    def _context_goes_together(self) -> Context:
        if self.truncation not in (None, "disabled"):
            raise PydanticCustomError(
                "unsupported",
                "truncation must be 'disabled', found {value}; this server never cuts a conversation",
                {"value": repr(self.truncation), "field": "truncation"},
            )
        if self.previous_response_id is not None and self.conversation is not None:
            raise PydanticCustomError(
                "needs",
                "a response continues a previous one or belongs to a conversation, found both; give one",
                {"field": "conversation"},
            )
        if self.input is None and self.previous_response_id is None and self.conversation is None:
            raise PydanticCustomError("needs", "input is missing; give a text or items", {"field": "input"})
        if self.tool_choice not in (None, "none", "auto"):
            self._check_choice()
        return self

    def _check_choice(self) -> None:
        names = [tool.name for tool in self.tools or ()]
        chosen = self.tool_choice
        wanted: list[str] = []
        if isinstance(chosen, NamedTool):
            wanted = [chosen.name]
        elif isinstance(chosen, AllowedTools):
            wanted = [tool.name for tool in chosen.tools]
        missing = next((name for name in wanted if name not in names), None)
        if not names or missing is not None:
            raise PydanticCustomError(
                "needs",
                "tool_choice needs tools that are given, found {found}",
                {"found": "none" if missing is None else f"no {missing!r}", "field": "tool_choice"},
            )

    @property
    def conversation_id(self) -> str | None:
        chosen = self.conversation
        return chosen.id if isinstance(chosen, ConversationId) else chosen

    @property
    def usable_tools(self) -> list[FunctionTool]:
        """Those that may be called."""
        if self.tool_choice == "none":
            return []
        tools = self.tools or []
        if isinstance(self.tool_choice, AllowedTools):
            allowed = {tool.name for tool in self.tool_choice.tools}
            return [tool for tool in tools if tool.name in allowed]
        return tools

    def chat(self, turns: Turns) -> Chat:
        """As all APIs have it; `turns` are those of the input and of what it continues."""
        choice = self.tool_choice
        is_any_required = isinstance(choice, AllowedTools) and choice.mode == "required"
        use = ToolUse(
            [tool.as_chat() for tool in self.usable_tools],
            required=choice == "required" or isinstance(choice, NamedTool) or is_any_required,
            named=choice.name if isinstance(choice, NamedTool) else None,
            parallel=self.parallel_tool_calls is not False,
        )
        held = self.text.format if self.text else None
        form = None if held is None else held.grammar_for
        return Chat(self.model, turns, use=use, form=form, param="input")


class CountRequest(Context):
    harmless: ClassVar[tuple[str, ...]] = ("reasoning", "personality")


class ResponseRequest(Context, Sampler):
    harmless: ClassVar[tuple[str, ...]] = (
        *Sampler.harmless, "reasoning", "max_tool_calls", "prompt_cache_options",
    )  # fmt: skip

    store: bool | None = None
    background: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    metadata: Metadata | None = None
    include: list[Included] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _goes_together(self) -> ResponseRequest:
        if self.top_logprobs and not self.wants_logprobs:
            raise PydanticCustomError(
                "needs",
                "top_logprobs needs include: ['message.output_text.logprobs'], found {value}",
                {"value": repr(self.include), "field": "top_logprobs"},
            )
        if self.background and (self.stream or self.store is False):
            other = "stream: true" if self.stream else "store: false"
            raise PydanticCustomError(
                "needs",
                "a background response is stored and asked for by its id, found {other}; take it out",
                {"other": other, "field": "background"},
            )
        return self

    @property
    def wants_logprobs(self) -> bool:
        return "message.output_text.logprobs" in (self.include or ())

    def chat(self, turns: Turns) -> Chat:
        chat = super().chat(turns)
        return replace(chat, sampling=self.sampling, tier=self.service_tier, cache_salt=self.cache_salt)

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        top = (self.top_logprobs or 0) if self.wants_logprobs else None
        return self.params(defaults, logprobs=top, max_tokens=self.max_output_tokens)
