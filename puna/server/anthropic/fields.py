"""What requests of the Messages API may say. What would change nothing here is named in a header, as in
openai/fields.py; what only Anthropic's own servers can do (their tools, documents, containers) is an error.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from puna.core import SamplingParams
from puna.server.openai.fields import Body, changed

Text = Annotated[str, Field(min_length=1)]


class TextBlock(Body):
    harmless: ClassVar[tuple[str, ...]] = ("cache_control", "citations")
    type: Literal["text"]
    text: Text


class Base64Source(Body):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str


class UrlSource(Body):
    type: Literal["url"]
    url: str


class ImageBlock(Body):
    harmless: ClassVar[tuple[str, ...]] = ("cache_control",)
    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")]


class ToolUseBlock(Body):
    harmless: ClassVar[tuple[str, ...]] = ("cache_control", "caller")
    type: Literal["tool_use"]
    id: Text
    name: Text
    input: dict[str, Any]


class ToolResultBlock(Body):
    harmless: ClassVar[tuple[str, ...]] = ("cache_control",)
    type: Literal["tool_result"]
    tool_use_id: Text
    content: str | list[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]] | None = None
    is_error: bool | None = None


class ThinkingBlock(Body):
    """Of an answer that another model gave; no Llama is shown it."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(Body):
    type: Literal["redacted_thinking"]
    data: str


UserBlock = TextBlock | ImageBlock | ToolResultBlock
AssistantBlock = TextBlock | ToolUseBlock | ThinkingBlock | RedactedThinkingBlock
Block = UserBlock | AssistantBlock


class FromUser(Body):
    role: Literal["user"]
    content: str | list[Annotated[UserBlock, Field(discriminator="type")]]


class FromAssistant(Body):
    role: Literal["assistant"]
    content: str | list[Annotated[AssistantBlock, Field(discriminator="type")]]


class FromSystem(Body):
    role: Literal["system"]
    content: str | list[TextBlock]


Message = Annotated[FromUser | FromAssistant | FromSystem, Field(discriminator="role")]


class Tool(Body):
    harmless: ClassVar[tuple[str, ...]] = (
        "cache_control", "allowed_callers", "defer_loading", "eager_input_streaming", "input_examples",
    )  # fmt: skip
    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class Auto(Body):
    type: Literal["auto"]
    disable_parallel_tool_use: bool | None = None


class AnyTool(Body):
    type: Literal["any"]
    disable_parallel_tool_use: bool | None = None


class OneTool(Body):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class NoTool(Body):
    type: Literal["none"]


class JsonFormat(Body):
    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Body):
    harmless: ClassVar[tuple[str, ...]] = ("effort",)
    format: JsonFormat | None = None


class ClearThinking(Body):
    """The one edit of a context that has happened here whatever a request says."""

    type: Literal["clear_thinking_20251015"]
    keep: Any = None


class ContextManagement(Body):
    edits: Annotated[list[ClearThinking], Field(default_factory=list)]


class Prompt(Body):
    """What a prompt is made of: all that count_tokens takes."""

    harmless: ClassVar[tuple[str, ...]] = (
        "cache_control", "thinking", "speed", "user_profile_id", "workspace_id",
    )  # fmt: skip

    model: Text
    messages: Annotated[list[Message], Field(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: list[Tool] | None = None
    tool_choice: Annotated[Auto | AnyTool | OneTool | NoTool, Field(discriminator="type")] | None = None
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = None  # what output_config.format was called before
    context_management: ContextManagement | None = None

    @model_validator(mode="after")
    def _goes_together(self) -> Prompt:
        if self.tool_choice is not None and self.tool_choice.type in ("any", "tool") and not self.tools:
            raise PydanticCustomError(
                "needs", "tool_choice needs tools, there are none; give some", {"field": "tool_choice"}
            )
        if self.output_format and self.output_config and self.output_config.format:
            raise PydanticCustomError(
                "needs",
                "output_format and output_config.format mean the same, give one",
                {"field": "output_format"},
            )
        return self

    @property
    def answer_schema(self) -> dict[str, Any] | None:
        """What the answer has to be an instance of."""
        form = self.output_format or (self.output_config and self.output_config.format)
        return form.schema_ if form else None


class MessagesRequest(Prompt):
    harmless: ClassVar[tuple[str, ...]] = (
        *Prompt.harmless, "metadata", "service_tier", "inference_geo", "diagnostics",
    )  # fmt: skip

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: list[Text] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        """What the engine samples by. Raises BadValue."""
        given = {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p or (1e-9 if self.top_p == 0 else None),  # 0: the likeliest token
            "max_tokens": self.max_tokens,
            "stop": tuple(self.stop_sequences or ()),
        }
        return changed(defaults, given)
