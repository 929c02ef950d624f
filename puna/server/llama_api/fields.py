"""What requests of the Llama API may say: OpenAI's messages and tools with few differences."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from puna.core import SamplingParams
from puna.server.openai import messages
from puna.server.openai.fields import Body, changed
from puna.server.openai.formats import JsonSchema, PlainText
from puna.server.openai.messages import OneChoice, Tool, check_choice


class FromAssistant(messages.FromAssistant):
    """An answer as it came: its content is one part."""

    harmless: ClassVar[tuple[str, ...]] = (*messages.FromAssistant.harmless, "stop_reason")

    @field_validator("content", mode="before")
    @classmethod
    def _as_parts(cls, content: Any) -> Any:
        return [content] if isinstance(content, dict) else content


Turn = Annotated[
    messages.Instruction | messages.FromUser | messages.FromTool | FromAssistant, Field(discriminator="role")
]


class ChatRequest(Body):
    harmless: ClassVar[tuple[str, ...]] = ("user",)

    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[Turn], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    response_format: Annotated[JsonSchema | PlainText, Field(discriminator="type")] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    tool_choice: OneChoice | None = None
    tools: list[Tool] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _goes_together(self) -> ChatRequest:
        check_choice(self.tool_choice, self.tools)
        return self

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        """What the engine samples by. Raises BadValue."""
        given = {
            "repetition_penalty": self.repetition_penalty,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p or (1e-9 if self.top_p == 0 else None),  # 0: the likeliest token
            "max_tokens": self.max_completion_tokens,
        }
        return changed(defaults, given)


class Moderation(Body):
    messages: Annotated[list[Turn], Field(min_length=1)]
    model: str | None = None


class Upload(Body):
    bytes: Annotated[int, Field(ge=0)]
    filename: str
    mime_type: str
    purpose: Literal[
        "attachment", "ephemeral_attachment", "image_generation_result", "messages_finetune", "messages_eval",
        "metadata",
    ]  # fmt: skip
