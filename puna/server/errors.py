"""What went wrong, as HTTP says it: one table from errors to statuses, and the body.

OpenAI's shape is {"error": {"message", "type", "param", "code"}} (API reference, "Error codes").
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, MutableMapping
from math import ceil
from typing import Any

from starlette.datastructures import Headers

from puna.core import (
    BadInput,
    DiskFull,
    DoesNotFit,
    EngineClosed,
    NotPulled,
    PromptTooLong,
    PunaError,
    UnknownModel,
    WorkFailed,
)
from puna.server.safety.screen import SafetyUnavailable
from puna.server.storage.database import DatabaseUnavailable
from puna.server.storage.files import InUse, TooMuch
from puna.server.tenants.limits import RateLimited

_log = logging.getLogger("puna.server")

INVALID = "invalid_request_error"
_MOST_MESSAGE, _MOST_PARAM = 1500, 200  # characters


class ApiError(Exception):
    """An answer other than 2xx. `param` is the field of the request that it is about, if one is."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(_cut(message, _MOST_MESSAGE))
        self.status = status
        self.message = _cut(message, _MOST_MESSAGE)
        self.kind = kind
        self.param = param and _cut(param, _MOST_PARAM)
        self.code = code
        self.headers = dict(headers or {})
        self.is_counted = False  # the call that it ended has been accounted for


def _cut(text: str, most: int) -> str:
    """What an error quotes of a request is no copy of it."""
    return text if len(text) <= most else f"{text[:most]}…"


def bad(param: str, message: str, code: str | None = None) -> ApiError:
    """A request that cannot be answered because of one of its fields."""
    return ApiError(400, message, param=param, code=code)


def too_long(message: str, param: str | None = None) -> ApiError:
    """A prompt that does not fit, as `message` says. LangChain, LiteLLM and agents know by these words, in
    every API, that the conversation has to be shortened.
    """
    return ApiError(400, f"prompt is too long: {message}", param=param, code="context_length_exceeded")


def not_found(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(404, message, param=param, code=code)


def content_lost(id: str) -> ApiError:
    """Of an uploaded file that the database knows."""
    return ApiError(
        500,
        f"the content of {id} cannot be read from this server's disk; upload the file again",
        kind="server_error",
    )


def unavailable(message: str, retry_after_s: int) -> ApiError:
    return ApiError(503, message, kind="server_error", headers={"retry-after": str(retry_after_s)})


# the first class that an error is an instance of decides: status, type, code
_TABLE: tuple[tuple[type[PunaError], int, str, str | None], ...] = (
    (NotPulled, 404, INVALID, "model_not_found"),
    (UnknownModel, 404, INVALID, "model_not_found"),
    (DoesNotFit, 503, "server_error", "insufficient_memory"),
    (TooMuch, 413, INVALID, "file_too_large"),
    (InUse, 409, INVALID, "file_in_use"),
    (BadInput, 400, INVALID, None),
    (EngineClosed, 503, "server_error", "engine_closed"),
    (SafetyUnavailable, 503, "server_error", "safety_unavailable"),
    (DiskFull, 507, "server_error", "disk_full"),
    (WorkFailed, 500, "server_error", None),
    (PunaError, 500, "server_error", None),
)


def from_puna(error: PunaError, param: str | None = None) -> ApiError:
    """What a request gets to see of an error of ours; `param` is the field that led to it."""
    if isinstance(error, RateLimited):
        wait = {} if error.retry_after is None else {"retry-after": str(ceil(error.retry_after))}
        return ApiError(429, str(error), kind="rate_limit_error", code="rate_limit_exceeded", headers=wait)
    if isinstance(error, PromptTooLong):
        return too_long(str(error), param)
    if isinstance(error, DatabaseUnavailable):  # what it says has the place of the database
        _log.error("%s", error)
        text, wait = "the server's database does not answer; try again in a moment", {"retry-after": "5"}
        return ApiError(503, text, kind="server_error", code="database_unavailable", headers=wait)
    for kind, status, type_, code in _TABLE:
        if isinstance(error, kind):
            named = param if 400 <= status < 500 else None
            return ApiError(status, str(error), kind=type_, param=named, code=code)
    raise AssertionError("every PunaError is in the table")


def from_results(error: PunaError) -> ApiError:
    """An answer that broke off: whatever the engine calls it, the request was good."""
    if isinstance(error, EngineClosed | SafetyUnavailable):
        return from_puna(error)
    return ApiError(500, str(error), kind="server_error", code="generation_failed")


BodyOf = Callable[[ApiError], dict[str, Any]]
Scope = MutableMapping[str, Any]


class Dialects:
    """How each API words its errors, by where its paths begin; OpenAI's shape on all others."""

    def __init__(self) -> None:
        self._bodies: dict[tuple[str, str | None], BodyOf] = {}

    def add(self, prefix: str, body_of: BodyOf, *, header: str | None = None) -> None:
        """Paths that are `prefix`, or go on with a slash after it, get errors as `body_of` writes them; with
        `header`, those of requests that have it.
        """
        self._bodies[prefix, header] = body_of

    def body(self, scope: Scope, error: ApiError) -> dict[str, Any]:
        """What the request of that ASGI scope gets to read."""
        path = scope["path"]
        for (prefix, header), write in self._bodies.items():
            is_there = path == prefix or path.startswith(prefix + "/")
            if is_there and (header is None or header in Headers(scope=scope)):
                return write(error)
        return body_of(error)


def body_of(error: ApiError) -> dict[str, Any]:
    """OpenAI's shape."""
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}
