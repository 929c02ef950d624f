"""JSON of requests, read strictly: RFC 8259, and nothing of it guessed.

Python takes NaN for a number, the last of two fields of the same name, UTF-16 for text, and half a surrogate
pair in UTF-8 for a letter. Whoever looked at the request before us may have read something else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

_MOST_FIELDS = (
    10_000  # of an object: each one that is wrong is an error with its own text until one is chosen
)


class NotStrict(ValueError):
    """What json.loads would take, and is no JSON or says two things."""


def loads(text: bytes) -> Any:
    """Raises json.JSONDecodeError, and NotStrict for what is beyond its syntax."""
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_no_number, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise NotStrict(f"it must be UTF-8, it is not at byte {error.start}") from None
    except RecursionError:
        raise NotStrict("its lists and objects must not be nested so deeply") from None
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError | NotStrict):
            raise
        raise NotStrict("it has a number with too many digits") from None


def _no_number(name: str) -> NoReturn:
    raise NotStrict(f"it has {name}, which is no number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > _MOST_FIELDS:
        raise NotStrict(f"an object may have {_MOST_FIELDS:,} fields, one has {len(pairs):,}")
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = next((name, n) for name, n in Counter(name for name, _ in pairs).items() if n > 1)
        raise NotStrict(f"an object has the field {twice!r:.80} twice; give it once")
    return found


class _Request(HttpRequest):
    async def json(self) -> Any:
        try:
            return loads(await self.body())
        except NotStrict as error:
            # FastAPI lets this pass, and puts all others in words of its own
            raise HTTPException(400, f"the body must be JSON: {error}") from None


class Route(APIRoute):
    """A route whose body, if it is JSON, is read strictly, and only if its sender has a key where keys are
    required: reading it may be most of the work.
    """

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(http: HttpRequest) -> Response:
            if http.method == "POST":  # what anybody may see has no body
                http.app.state.service.check_known(http)
            return await handle(_Request(http.scope, http.receive, http._send))

        return strict
