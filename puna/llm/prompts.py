"""What a caller may ask with: a text, token ids, a list of either, or a conversation; and the requests that
these become."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from puna.core import PlacedImage, PromptTooLong, Request, SamplingParams

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from puna.text.tokenizer import Tokenizer

_Begun = TypeVar("_Begun")

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


def make_request(
    tokenizer: Tokenizer,
    ids: list[int],
    params: SamplingParams,
    *,
    continuing: bool,
    is_scored: bool = False,
    images: Sequence[PlacedImage] = (),
    adapter: int = 0,
) -> Request:
    """A request whose answer becomes text; `continuing` says that its text goes on where the prompt ends."""
    from puna.llm.answer import TimedText

    sink = TimedText(tokenizer, params.stop, skip_special=True, continuing=continuing)
    end_ids = tokenizer.end_ids
    return Request(ids, params, end_ids, is_scored, sink=sink, images=images, adapter=adapter)


def begun(start: Callable[[Request], _Begun], request: Request) -> _Begun:
    """What `start` makes of a request; a prompt that is too long is told how much of it is images."""
    try:
        return start(request)
    except PromptTooLong as error:
        if not request.images:
            raise
        from puna.llm.images import explained

        raise explained(error, request) from None


def random_seed() -> int:
    return int.from_bytes(os.urandom(4), "little")
