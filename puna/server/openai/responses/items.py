"""Items: what a request gives, as it is kept, and as chat templates read it.

A kept item is what the API gives back: with an id of ours, a type, a status, and content in parts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal
from uuid import uuid4

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from puna.server.errors import bad
from puna.server.openai.fields import Body
from puna.server.openai.messages import RefusalPart

Item = dict[str, Any]


class InputText(Body):
    harmless: ClassVar[tuple[str, ...]] = ("annotations", "logprobs", "prompt_cache_breakpoint")
    type: Literal["input_text", "output_text", "text"]
    text: str


class InputImage(Body):
    harmless: ClassVar[tuple[str, ...]] = ("detail", "prompt_cache_breakpoint")
    type: Literal["input_image"]
    image_url: str | None = None
    file_id: str | None = None

    @model_validator(mode="after")
    def _has_one_source(self) -> InputImage:
        if (self.image_url is None) == (self.file_id is None):
            raise PydanticCustomError(
                "needs",
                "an input_image must have one of image_url and file_id, found {n}",
                {"n": "neither" if self.image_url is None else "both", "field": "image_url"},
            )
        return self


Part = Annotated[InputText | InputImage | RefusalPart, Field(discriminator="type")]
Content = str | list[Part]


class Message(Body):
    harmless: ClassVar[tuple[str, ...]] = ("id", "status", "phase", "name")
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content

    def kept(self) -> Item:
        parts = [self.content] if isinstance(self.content, str) else self.content
        return {
            "id": new_id("msg"),
            "type": "message",
            "status": "completed",
            "role": self.role,
            "content": [_part(part, self.role) for part in parts],
        }


class FunctionCall(Body):
    harmless: ClassVar[tuple[str, ...]] = ("id", "status", "namespace")
    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1, max_length=64)]
    name: Annotated[str, Field(min_length=1, max_length=128)]
    arguments: str

    def kept(self) -> Item:
        return {**self.model_dump(), "id": new_id("fc"), "status": "completed"}


class FunctionCallOutput(Body):
    harmless: ClassVar[tuple[str, ...]] = ("id", "status")
    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(min_length=1, max_length=64)]
    output: Content

    def kept(self) -> Item:
        output: Any = self.output
        if not isinstance(output, str):
            output = [_part(part, "user") for part in output]
        return {**self.model_dump(), "output": output, "id": new_id("fco"), "status": "completed"}


class ItemReference(Body):
    type: Literal["item_reference"] | None = None
    id: Annotated[str, Field(min_length=1, max_length=64)]


def _form(data: Any) -> str | None:
    """What an item is: messages may leave their type out, references as well."""
    if not isinstance(data, Mapping):
        return None
    kind = data.get("type")
    if kind is None:
        is_reference = {"id"} <= set(data) <= {"id", "type"}
        kind = "message" if "role" in data else "item_reference" if is_reference else None
    return kind if isinstance(kind, str) else None


InputItem = Annotated[
    Annotated[Message, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(
        _form,
        custom_error_type="unknown_item",
        custom_error_message="an item must be a message (with a role), function_call, "
        "function_call_output or item_reference",
    ),
]
KeptItem = Message | FunctionCall | FunctionCallOutput


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid4().hex}"


def _part(part: str | InputText | InputImage | RefusalPart, role: str) -> Item:
    if isinstance(part, RefusalPart):
        return part.model_dump()
    if isinstance(part, InputImage):
        return {"type": "input_image", **part.model_dump(exclude={"type"}), "detail": "auto"}
    text = part if isinstance(part, str) else part.text
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": text}


def kept_items(
    given: str | Sequence[KeptItem | ItemReference], referred: Mapping[str, Item], where: str = "input"
) -> list[Item]:
    """The items of a request with ids of their own; references become what they refer to.

    Raises ApiError for a reference to what `referred` does not have.
    """
    if isinstance(given, str):
        check_unicode(given, where)
        return [Message(role="user", content=given).kept()]
    found: list[Item] = []
    for i, item in enumerate(given):
        if not isinstance(item, ItemReference):
            found.append(item.kept())
        elif item.id in referred:
            old = referred[item.id]
            found.append({**old, "id": new_id(old["id"].partition("_")[0])})
        else:
            raise bad(f"{where}[{i}].id", f"there is no item {item.id!r}; give the item itself")
        check_unicode(found[-1], f"{where}[{i}]")
    return found


def check_unicode(value: Any, param: str) -> None:
    """Raise ApiError for half a surrogate pair, which JSON can spell and nothing can keep or send."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise bad(param, f"{param} must be Unicode, found half a surrogate pair in it; take it out") from None


def references(given: str | Sequence[KeptItem | ItemReference]) -> list[str]:
    if isinstance(given, str):
        return []
    return [item.id for item in given if isinstance(item, ItemReference)]


def check_results(items: Sequence[Item], param: str = "input") -> None:
    """Raise ApiError where a result answers no call before it."""
    calls: set[str] = set()
    for item in items:
        if item["type"] == "function_call":
            calls.add(item["call_id"])
        elif item["type"] == "function_call_output" and item["call_id"] not in calls:
            raise bad(
                param,
                f"there is no function_call with call_id {item['call_id']!r} before its "
                "function_call_output; give the call as well, or continue the response that made it",
            )


def turns(instructions: str | None, items: Sequence[Item]) -> list[dict[str, Any]]:
    """The items as turns of a chat. Calls belong to the assistant's message that they follow."""
    found: list[dict[str, Any]] = []
    if instructions:
        found.append({"role": "system", "content": instructions})
    for item in items:
        if item["type"] == "function_call":
            function = {"name": item["name"], "arguments": item["arguments"]}
            call = {"id": item["call_id"], "type": "function", "function": function}
            if found and found[-1]["role"] == "assistant":
                found[-1].setdefault("tool_calls", []).append(call)
            else:
                found.append({"role": "assistant", "content": "", "tool_calls": [call]})
        elif item["type"] == "function_call_output":
            content = _read(item["output"])
            found.append({"role": "tool", "content": content, "tool_call_id": item["call_id"]})
        else:
            role = "system" if item["role"] == "developer" else item["role"]
            found.append({"role": role, "content": _read(item["content"])})
    return found


def _read(content: str | Sequence[Item]) -> str | list[dict[str, Any]]:
    """Plain text where there are no images, as templates of text models want it."""
    if isinstance(content, str):
        return content
    if any(part["type"] == "input_image" for part in content):
        return [_read_part(part) for part in content]
    return "".join(part["refusal"] if part["type"] == "refusal" else part["text"] for part in content)


def _read_part(part: Item) -> dict[str, Any]:
    if part["type"] == "input_image":
        url, file_id = part["image_url"], part["file_id"]
        return {"type": "image_url", "image_url": {"url": url} if url is not None else {"file_id": file_id}}
    return {"type": "text", "text": part["refusal"] if part["type"] == "refusal" else part["text"]}
