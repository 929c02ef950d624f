"""Conversations as judges read them: user and assistant in turns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from puna.safety.verdict import Content, Turn


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns of which the last is the user's, and how its answer was begun, if it was."""

    turns: tuple[Turn, ...]
    begun: str = ""


def conversation(messages: Sequence[Mapping[str, Any]], *, continues: bool = False) -> Conversation:
    """Messages as chat templates know them.

    Whoever sends a request writes its system prompt and the results of tools as well as what the user said:
    all of them are the user's for a judge, so that nothing gets by in another role.
    """
    turns: list[tuple[str, list[Mapping[str, Any]]]] = []
    for message in messages:
        role = "assistant" if message["role"] == "assistant" else "user"
        if not turns and role == "assistant":
            turns.append(("user", []))
        if not turns or turns[-1][0] != role:
            turns.append((role, []))
        turns[-1][1].extend(_parts(message))
    begun = ""
    if turns and turns[-1][0] == "assistant":
        last = turns.pop()
        if continues:
            begun = _text(last[1])
        else:
            turns += [last, ("user", [])]
    return Conversation(tuple((role, _content(parts)) for role, parts in turns), begun)


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content") or []
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    for call in message.get("tool_calls") or ():
        parts.append(
            {"type": "text", "text": called(call["function"]["name"], call["function"]["arguments"])}
        )
    return parts


def called(name: str, arguments: Any) -> str:
    """A call of a tool as a text."""
    shown = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f"{name}({shown})"


def _text(parts: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(part["text"] for part in parts if part["type"] == "text")


def _content(parts: Sequence[Mapping[str, Any]]) -> Content:
    """A text where there is nothing else."""
    if all(part["type"] == "text" for part in parts):
        return _text(parts)
    return list(parts)
