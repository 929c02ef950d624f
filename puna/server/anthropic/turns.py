"""Content blocks as turns that chat templates know.

A message of the user that holds results of tools becomes one turn for each of them, and one for the rest.
Pictures of a result go into that rest: no Llama has seen any where results stand. Texts of one turn stand on
lines of their own, except an answer's, which are its pieces. Thinking of other models is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from puna.server.anthropic.fields import (
    Base64Source,
    Block,
    ImageBlock,
    Prompt,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from puna.server.errors import ApiError, bad

Turn = dict[str, Any]


@dataclass(slots=True)
class _Message:
    """Messages of one role that follow one another."""

    role: str
    at: int  # the number of the first
    blocks: list[tuple[str, Block]] = field(default_factory=list)  # each with where the request has it


def turns_of(body: Prompt) -> tuple[list[Turn], bool]:
    """The turns, and whether the last is an answer that was begun and goes on. Raises ApiError."""
    messages = _merged(body)
    _check_calls(messages)
    turns: list[Turn] = []
    for message in messages:
        if message.role == "assistant":
            turns.append(_answer(message))
        else:
            turns += _given(message)
    if body.system:
        texts = [body.system] if isinstance(body.system, str) else [block.text for block in body.system]
        is_there = bool(turns) and turns[0]["role"] == "system"
        texts += [turns.pop(0)["content"]] if is_there else []
        turns.insert(0, {"role": "system", "content": "\n".join(texts)})
    is_begun = messages[-1].role == "assistant"
    if is_begun:
        _check_begun(body, turns[-1]["content"], messages[-1].at)
    return turns, is_begun


def _merged(body: Prompt) -> list[_Message]:
    merged: list[_Message] = []
    for i, message in enumerate(body.messages):
        content = message.content
        if not content:
            if i + 1 == len(body.messages) > 1 and message.role == "assistant":
                break  # an answer that was begun with nothing
            raise bad(f"messages[{i}].content", f"messages[{i}].content must not be empty, found {content!r}")
        if not merged or merged[-1].role != message.role:
            merged.append(_Message(message.role, i))
        if isinstance(content, str):
            merged[-1].blocks.append(
                (f"messages[{i}].content", TextBlock.model_construct(type="text", text=content))
            )
        else:
            merged[-1].blocks += [(f"messages[{i}].content[{j}]", block) for j, block in enumerate(content)]
    return merged


def _answer(message: _Message) -> Turn:
    blocks = [block for _, block in message.blocks]
    turn: Turn = {"role": "assistant", "content": "".join(_texts(blocks))}
    calls = [block for block in blocks if isinstance(block, ToolUseBlock)]
    if calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.input, ensure_ascii=False)},
            }
            for call in calls
        ]
    return turn


def _given(message: _Message) -> list[Turn]:
    """Results of tools, and what the user, or the system, says."""
    turns: list[Turn] = []
    rest: list[tuple[str, Block]] = []
    for at, block in message.blocks:
        if not isinstance(block, ToolResultBlock):
            rest.append((at, block))
            continue
        content = block.content or ""
        if isinstance(content, list):
            rest += [
                (f"{at}.content[{k}]", part) for k, part in enumerate(content) if isinstance(part, ImageBlock)
            ]
            content = "\n".join(_texts(content))
        text = f"Error: {content}" if block.is_error else content
        turns.append({"role": "tool", "content": text, "tool_call_id": block.tool_use_id})
    if rest:
        turns.append({"role": message.role, "content": _content(rest)})
    return turns


def _content(blocks: Sequence[tuple[str, Block]]) -> str | list[dict[str, Any]]:
    """A text, or parts where there are images."""
    if not any(isinstance(block, ImageBlock) for _, block in blocks):
        return "\n".join(_texts(block for _, block in blocks))
    parts: list[dict[str, Any]] = []
    for at, block in blocks:
        if isinstance(block, ImageBlock):
            parts.append({"type": "image_url", "image_url": {"url": _url(block)}, "at": at})
        elif isinstance(block, TextBlock) and parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += f"\n{block.text}"
        elif isinstance(block, TextBlock):
            parts.append({"type": "text", "text": block.text})
    return parts


def _texts(blocks: Iterable[Block]) -> list[str]:
    return [block.text for block in blocks if isinstance(block, TextBlock)]


def _url(block: ImageBlock) -> str:
    source = block.source
    if isinstance(source, Base64Source):
        return f"data:{source.media_type};base64,{source.data}"
    return source.url


def _check_calls(messages: Sequence[_Message]) -> None:
    """Raise ApiError unless every call has its result in the next message, and every result its call."""
    open_ids: list[str] = []
    for message in messages:
        found = [block.tool_use_id for _, block in message.blocks if isinstance(block, ToolResultBlock)]
        missing = [name for name in open_ids if name not in found]
        if missing:
            raise _unanswered(message.at, missing[0])
        for number, name in enumerate(found):
            if name not in open_ids or name in found[:number]:
                raise bad(
                    f"messages[{message.at}].content",
                    f"each tool_result must answer one tool_use of the message before, {name!r} does not; "
                    "take it out, or give that message",
                )
        open_ids = [block.id for _, block in message.blocks if isinstance(block, ToolUseBlock)]
    if open_ids:
        raise _unanswered(messages[-1].at + 1, open_ids[0])


def _unanswered(at: int, name: str) -> ApiError:
    return bad(
        f"messages[{at}]",
        f"the message after a tool_use must have its tool_result, there is none for {name!r}; add it",
    )


def _check_begun(body: Prompt, text: str, at: int) -> None:
    where = f"messages[{at}].content"
    if not text or text != text.rstrip():
        raise bad(
            where,
            "an answer that is to go on must have text that does not end with white space, found "
            f"{text[-20:]!r}; strip it",
        )
    if body.tool_choice is not None and body.tool_choice.type in ("any", "tool"):
        raise bad(where, "an answer that has to call a tool cannot be begun by the request; leave it out")
    if body.answer_schema is not None:
        raise bad(where, "an answer that has to follow a schema cannot be begun by the request; leave it out")
