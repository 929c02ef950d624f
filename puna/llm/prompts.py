"""What a caller may ask with: a text, token ids, a list of either, or a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Message = Mapping[str, Any]  # {"role": "user", "content": text or parts}, what else the template reads
Prompt = str | Sequence[int]  # text, or token ids
Batch = list[str] | list[list[int]]


def is_batch(prompt: Prompt | Batch) -> TypeIs[Batch]:
    """Whether this is a list of prompts, rather than one text or one list of ids."""
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], str | Sequence)


def items(prompt: Prompt | Batch) -> Sequence[Prompt]:
    return prompt if is_batch(prompt) else [prompt]


def is_conversation(prompt: Prompt | Sequence[Message]) -> TypeIs[Sequence[Message]]:
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def has_parts(messages: Sequence[Any]) -> bool:
    """Whether there could be images: some content is a list."""
    return any(isinstance(m, Mapping) and isinstance(m.get("content"), list | tuple) for m in messages)


def n_characters(messages: Sequence[Any]) -> int:
    """Of the text that people and models said; of tools, nothing counts."""
    contents = (m.get("content") for m in messages if isinstance(m, Mapping))
    return sum(_length(content) for content in contents)


def _length(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    if not isinstance(content, list | tuple):
        return 0
    texts = (part.get("text") for part in content if isinstance(part, Mapping))
    return sum(len(text) for text in texts if isinstance(text, str))
