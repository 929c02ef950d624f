"""Conversations as judges read them: user and assistant in turns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from puna.safety.verdict import Content, Turn

_MOST = 64  # turns that are judged one by one; what was before them is one text
Parts = list[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a request sends: turns of which the last is the user's, how the answer to it was begun, if it was,
    and the tools that the model is shown, as text.
    """

    turns: tuple[Turn, ...]
    begun: str = ""
    tools: str = ""

    def asked(self) -> list[Sequence[Turn]]:
        """All that is judged before anything is shown, each with what was before it.

        Not the last turn alone: whoever sends a request writes the whole history, answers included.
        """
        found: list[Sequence[Turn]] = [
            self.turns[: i + 1] for i, (_, content) in enumerate(self.turns) if content
        ]
        if self.begun.strip():
            found.append((*self.turns, ("assistant", self.begun)))
        if self.tools:
            found.append((("user", self.tools),))
        return found


def conversation(
    messages: Sequence[Mapping[str, Any]],
    *,
    continues: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> Conversation:
    """Messages as chat templates know them; with `continues` the last is an answer that goes on.

    System prompts and results of tools are the user's for a judge, so that nothing gets by in another role.
    An answer at the end, which goes on or is followed by another, is judged with what comes.
    """
    turns: list[tuple[str, Parts]] = []
    for message in messages:
        role = "assistant" if message["role"] == "assistant" else "user"
        if not turns and role == "assistant":
            turns.append(("user", []))
        if not turns or turns[-1][0] != role:
            turns.append((role, []))
        turns[-1][1].extend(_parts(message))
    begun = ""
    if turns and turns[-1][0] == "assistant":
        begun = _text(turns.pop()[1]) + ("" if continues else "\n\n")
    shown = json.dumps(list(tools), ensure_ascii=False) if tools else ""
    return Conversation(tuple((role, _content(parts)) for role, parts in _few(turns)), begun, shown)


def _few(turns: list[tuple[str, Parts]]) -> list[tuple[str, Parts]]:
    """At most _MOST turns, of which the first then has all that was before the others."""
    if len(turns) <= _MOST:
        return turns
    n_merged = len(turns) - _MOST + 1
    n_merged += 1 - n_merged % 2  # the next one is the assistant's
    merged = [part for _, parts in turns[:n_merged] for part in parts]
    return [("user", merged), *turns[n_merged:]]


def _parts(message: Mapping[str, Any]) -> Parts:
    content = message.get("content") or []
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    for call in message.get("tool_calls") or ():
        text = called(call["function"]["name"], call["function"]["arguments"])
        parts.append({"type": "text", "text": text})
    return parts


def called(name: str, arguments: Any) -> str:
    """A call of a tool as a text."""
    shown = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f"{name}({shown})"


def _text(parts: Parts) -> str:
    return "\n\n".join(part["text"] for part in parts if part["type"] == "text")


def _content(parts: Parts) -> Content:
    """A text where there is nothing else."""
    if all(part["type"] == "text" for part in parts):
        return _text(parts)
    return list(parts)
