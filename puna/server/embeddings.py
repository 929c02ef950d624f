"""Embeddings in no API's words: texts or ids, admitted and accounted for like any other call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.requests import Request as HttpRequest

from puna.server.calls import Call, Choices
from puna.server.errors import bad
from puna.server.served import ServedModel
from puna.server.service import LARGE, Service

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST = 2048  # inputs of one request, OpenAI's limit


async def embedded(
    service: Service,
    http: HttpRequest,
    endpoint: str,
    model: str,
    inputs: Sequence[str | Sequence[int]],
    *,
    dimensions: int | None = None,
    truncate: bool = False,
    param: str = "input",
) -> tuple[Call, list[NDArray[np.float32]]]:
    """The embeddings of the inputs, each of norm 1 or as the model gives it: see `engine.pooling.normalized`.

    With `truncate` an input that is too long is cut at its end to what the context holds. Raises ApiError.
    """
    if not inputs or not all(inputs):
        raise bad(param, f"{param} must have at least one token, found an empty one")
    if len(inputs) > _MOST:
        raise bad(param, f"{param} must be at most {_MOST} texts, got {len(inputs)}; send several requests")

    def make(served: ServedModel) -> list[Choices]:
        width = served.config.dim
        if dimensions not in (None, width):
            raise bad(
                "dimensions",
                f"dimensions must be the {width} that this model gives, got {dimensions}: it was not trained "
                "to be cut; leave dimensions out",
            )
        requests = [served.embed_request(item) for item in inputs]
        if truncate:
            for request in requests:
                request.prompt = request.prompt[: min(served.context, served.cache_tokens)]
        return [[request] for request in requests]

    is_slow = sum(map(len, inputs)) > LARGE
    call = await service.begin(http, endpoint, model, make, is_slow=is_slow, param=param)
    answers = await call.answers(http)
    if blocked := [i for i, answer in enumerate(answers) if answer.finish == "content_filter"]:
        message = f"{param} must be what the safety policy of this key allows, number {blocked[0] + 1} is not"
        raise bad(param, message, "content_filter")
    found = [generation.embedding for generation in call.generations]
    return call, [row for row in found if row is not None]
