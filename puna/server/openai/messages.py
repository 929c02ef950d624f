"""The messages and tools of a chat request, checked, and as puna.text reads them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from puna.server.chats import ToolUse, as_templates_know
from puna.server.openai.fields import Body


class TextPart(Body):
    harmless: ClassVar[tuple[str, ...]] = ("cache_control",)
    type: Literal["text"]
    text: str


class ImageUrl(Body):
    harmless: ClassVar[tuple[str, ...]] = ("detail",)
    url: str | None = None
    file_id: str | None = None  # of an uploaded file: not OpenAI's, whose /v1/responses has it

    @model_validator(mode="after")
    def _has_one_source(self) -> ImageUrl:
        if (self.url is None) == (self.file_id is None):
            raise PydanticCustomError(
                "needs",
                "an image_url must have one of url and file_id, found {n}",
                {"n": "neither" if self.url is None else "both", "field": "url"},
            )
        return self


class ImagePart(Body):
    harmless: ClassVar[tuple[str, ...]] = ("cache_control",)
    type: Literal["image_url"]
    image_url: ImageUrl


class RefusalPart(Body):
    type: Literal["refusal"]
    refusal: str


Part = Annotated[TextPart | ImagePart | RefusalPart, Field(discriminator="type")]
Content = str | list[Part]


class Function(Body):
    name: str
    arguments: str


class CallOfTool(Body):
    harmless: ClassVar[tuple[str, ...]] = ("index",)
    id: str
    type: Literal["function"] = "function"
    function: Function


class Instruction(Body):
    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class FromUser(Body):
    role: Literal["user"]
    content: Content
    name: str | None = None


class FromAssistant(Body):
    # what answers of this and other servers carry, and clients send back as it came
    harmless: ClassVar[tuple[str, ...]] = (
        "refusal", "annotations", "audio", "function_call", "reasoning", "reasoning_content",
    )  # fmt: skip
    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[CallOfTool] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> FromAssistant:
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError(
                "needs", "a message of the assistant must have content or tool_calls", {"field": "content"}
            )
        return self


class FromTool(Body):
    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


Turn = Annotated[Instruction | FromUser | FromAssistant | FromTool, Field(discriminator="role")]


class FunctionDefinition(Body):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1)]


class AllowedToolsChoice(Body):
    """Some of the tools, so that a client need not change the list of them."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


OneChoice = Literal["none", "auto", "required"] | NamedTool
ToolChoice = (
    Literal["none", "auto", "required"]
    | Annotated[NamedTool | AllowedToolsChoice, Field(discriminator="type")]
)


def check_choice(choice: ToolChoice | None, tools: list[Tool] | None) -> None:
    """Raise PydanticCustomError where a choice asks for calls of no tools, or of others."""
    if choice not in (None, "none", "auto") and not tools:
        raise PydanticCustomError(
            "needs", "tool_choice needs tools, there are none; give some", {"field": "tool_choice"}
        )
    if isinstance(choice, AllowedToolsChoice):
        names = [tool.function.name for tool in tools or ()]
        for allowed in choice.allowed_tools.tools:
            if allowed.function.name not in names:
                raise PydanticCustomError(
                    "needs",
                    "allowed_tools must be some of tools, found {name}",
                    {"name": repr(allowed.function.name), "field": "tool_choice"},
                )


def use_of(tools: list[Tool] | None, choice: ToolChoice | None, *, parallel: bool = True) -> ToolUse:
    usable, mode = tools or [], choice
    if isinstance(choice, AllowedToolsChoice):
        names = {tool.function.name for tool in choice.allowed_tools.tools}
        usable = [tool for tool in usable if tool.function.name in names]
        mode = choice.allowed_tools.mode
    return ToolUse(
        [tool.model_dump(exclude_none=True) for tool in usable],
        may_call=mode != "none",
        required=mode not in (None, "auto"),
        named=choice.function.name if isinstance(choice, NamedTool) else None,
        parallel=parallel,
    )


def as_text_reads(turn: Instruction | FromUser | FromAssistant | FromTool) -> dict[str, Any]:
    """A turn as chat templates know it: plain texts where there are no images, system for developer."""
    plain: dict[str, Any] = {"role": "system" if turn.role == "developer" else turn.role}
    content = turn.content
    if isinstance(content, list):
        plain["content"] = _parts(content)
    else:
        plain["content"] = content or ""
    if turn.name is not None:
        plain["name"] = turn.name
    if isinstance(turn, FromAssistant) and turn.tool_calls:
        plain["tool_calls"] = [call.model_dump() for call in turn.tool_calls]
    if isinstance(turn, FromTool):
        plain["tool_call_id"] = turn.tool_call_id
    return plain


def _parts(parts: list[Any]) -> str | list[dict[str, Any]]:
    if any(isinstance(part, ImagePart) for part in parts):
        return [_part(part) for part in parts]
    return "".join(part.text if isinstance(part, TextPart) else part.refusal for part in parts)


def _part(part: TextPart | ImagePart | RefusalPart) -> dict[str, Any]:
    if isinstance(part, RefusalPart):
        return {"type": "text", "text": part.refusal}
    return part.model_dump(exclude_none=True)


def definition(tool: Tool) -> dict[str, Any]:
    """A tool as chat templates know it."""
    return as_templates_know(tool.model_dump(exclude_none=True))
