"""What all prompt formats share: messages read and checked, and pieces of a prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from puna.core import BadInput

Part = str | int
Parts = list[Part]  # texts, each encoded by itself, and ids
Builtins = Sequence[str]
ToolStyle = Literal["json", "pythonic", "function"]
Role = Literal["system", "user", "assistant", "tool"]
StopReason = Literal["end_of_turn", "end_of_message"]

ROLES: Mapping[str, Role] = {
    "system": "system", "user": "user", "assistant": "assistant", "tool": "tool", "ipython": "tool",
}  # fmt: skip
IMAGE_TYPES = ("image", "image_url")  # of parts of messages
_STOP_REASONS = ("end_of_turn", "end_of_message")
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True, slots=True)
class Image:
    """A picture's place; `tiles` are how many the picture was cut into, across and down."""

    tiles: tuple[int, int] = (1, 1)


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """A message, checked."""

    role: Role
    content: tuple[str | Image, ...]
    calls: tuple[Call, ...] = ()
    stop_reason: StopReason | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """What a prompt is built of: the arguments of build_prompt."""

    chat_format: str
    messages: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...]
    builtin_tools: tuple[str, ...]
    tool_style: ToolStyle | None
    add_generation_prompt: bool
    date: date | None
    patches: int  # tokens of a tile, where pictures are tiles
    continue_final_message: (
        bool  # the last message is an answer that was begun: the prompt ends with its text
    )


def read_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """Raises BadInput, naming the message by its number."""
    if not messages:
        raise BadInput("a conversation must have a message to answer, it has none")
    return tuple(_turn(i, message) for i, message in enumerate(messages))


def _turn(i: int, message: Mapping[str, Any]) -> Turn:
    role = message.get("role") if isinstance(message, Mapping) else None
    if not isinstance(role, str) or role not in ROLES:
        raise BadInput(
            f'message {i} must be {{"role": …, "content": …}} with one of the roles {", ".join(ROLES)}, '
            f"found {message!r:.80}"
        )
    calls = tuple(_call(i, call) for call in message.get("tool_calls") or ())
    if calls and role != "assistant":
        raise BadInput(f"message {i}: only an assistant calls tools, the role is {role!r}")
    stop_reason = message.get("stop_reason")
    if stop_reason is not None and stop_reason not in _STOP_REASONS:
        raise BadInput(
            f"message {i}: stop_reason must be {' or '.join(_STOP_REASONS)}, found {stop_reason!r:.80}"
        )
    return Turn(ROLES[role], _content(i, message, bool(calls)), calls, stop_reason)


def _content(i: int, message: Mapping[str, Any], may_lack: bool) -> tuple[str | Image, ...]:
    content = message.get("content")
    if isinstance(content, str):
        return (content,)
    if content is None and may_lack:
        return ()
    if ROLES[message["role"]] == "tool" and content is not None and not _is_parts(content):
        return (to_json(content),)
    if content is None or not _is_parts(content):
        raise BadInput(f"message {i} must have a text or a list of parts for content, found {content!r:.80}")
    return tuple(_part(i, part) for part in content)


def _is_parts(content: Any) -> bool:
    return isinstance(content, list | tuple) and all(isinstance(p, Mapping) and "type" in p for p in content)


def _part(i: int, part: Mapping[str, Any]) -> str | Image:
    kind = part["type"]
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind in IMAGE_TYPES:
        return image_of(i, part)
    raise BadInput(
        f'message {i}: a part must be {{"type": "text", "text": …}} or {{"type": "image"}}, found '
        f"{part!r:.80}"
    )


def image_of(i: int, part: Mapping[str, Any]) -> Image:
    """The place of the picture that a part of message `i` is."""
    tiles = part.get("tiles", (1, 1))
    is_grid = isinstance(tiles, list | tuple) and len(tiles) == 2
    if not is_grid or not all(type(n) is int and n > 0 for n in tiles):
        raise BadInput(f"message {i}: tiles must be (across, down), two numbers from 1, found {tiles!r:.80}")
    return Image((tiles[0], tiles[1]))


def _call(i: int, call: Any) -> Call:
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise BadInput(f'message {i}: a tool call must be {{"name": …, "arguments": …}}, found {call!r:.80}')
    arguments = inner.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            arguments = None
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise BadInput(
            f"message {i}: arguments of {inner['name']!r:.80} must be an object, or one as JSON, found "
            f"{inner.get('arguments')!r:.80}"
        )
    if not _NAME.fullmatch(inner["name"]):
        raise BadInput(f"message {i}: a tool's name must be a word, found {inner['name']!r:.80}")
    return Call(inner["name"], arguments)


def to_json(value: Any, indent: int | None = None) -> str:
    """Raises BadInput for what is not plain data."""
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"messages and tools must be plain data as JSON has it: {error}") from None


def refuse_tools(options: Options) -> None:
    """For formats of models that were not trained to call any."""
    has_calls = any(turn.calls or turn.role == "tool" for turn in options.messages)
    if options.tools or options.builtin_tools or has_calls:
        raise BadInput(
            f"models of the format {options.chat_format} were not trained to call tools, the request has "
            "tools, calls or results; take them out, or use a model from Llama 3.1 on"
        )


def text_of(turn: Turn, options: Options) -> str:
    """For formats without images."""
    if any(isinstance(part, Image) for part in turn.content):
        raise BadInput(
            f"the format {options.chat_format} has no place for images, the messages have one; use a vision "
            "model (Llama 3.2 Vision, Llama 4)"
        )
    return "".join(part for part in turn.content if isinstance(part, str))
