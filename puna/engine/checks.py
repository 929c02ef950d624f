"""What is wrong with a request, told before it is queued."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index

from puna.core import BadValue, Executor, PromptTooLong, Request

MOST_PRIORITY = 1000


def check_request(request: Request, executor: Executor, capacity: int) -> None:
    """Raise PromptTooLong or BadValue; `capacity` is how many tokens a sequence can have."""
    n_prompt, n_vocab, params = len(request.prompt), executor.vocab_size, request.params
    if n_prompt > capacity:
        raise PromptTooLong(
            f"the prompt has {n_prompt} tokens, but the context holds {capacity}; "
            "shorten the prompt, or load the model with a larger context"
        )
    if not n_prompt:
        raise BadValue("the prompt must have at least one token, got none")
    named_ids = {
        "prompt": (request.prompt, executor.n_token_ids),
        "logit_bias": (params.logit_bias, n_vocab),
        "stop_ids": (params.stop_ids, n_vocab),
        "logprob_ids": (params.logprob_ids, n_vocab),
    }
    for name, (ids, n_ids) in named_ids.items():
        if ids and not 0 <= min(ids) <= max(ids) < n_ids:
            found = f"{min(ids)} to {max(ids)}"
            raise BadValue(f"{name} must be token ids from 0 to {n_ids - 1}, got {found}")
    _check_images(request, executor)
    if type(request.priority) is not int or abs(request.priority) > MOST_PRIORITY:
        expected = f"a whole number from -{MOST_PRIORITY} to {MOST_PRIORITY}"
        raise BadValue(f"priority must be {expected}, got {request.priority!r}")
    if params.stop and request.sink is None:
        raise BadValue("stop strings need a request with a text sink, got none; use stop_ids or give one")


def check_whole(ids: Iterable[int]) -> None:
    """One token id that is none would stop the engine for everybody. Raises BadValue."""
    for i in ids:
        try:
            index(i)
        except TypeError:
            raise BadValue(f"a prompt must be a text or a list of token ids, got {i!r} among them") from None


def _check_images(request: Request, executor: Executor) -> None:
    last = -1
    for placed in request.images:
        expected, positions = executor.n_image_positions(placed.image), placed.positions
        if len(positions) != expected:
            raise BadValue(f"this image takes {expected} positions of the prompt, got {len(positions)}")
        for position in positions:
            if not isinstance(position, int):
                raise BadValue(f"positions of images must be whole numbers, got {position!r} among them")
            if not last < position < len(request.prompt):
                raise BadValue(
                    f"positions of images must rise and lie within the prompt of {len(request.prompt)} "
                    f"tokens, got {position} after {last}"
                )
            last = position
