"""Errors in Anthropic's words: {"type": "error", "error": {"type", "message"}, "request_id"}."""

from __future__ import annotations

from typing import Any

from puna.server.errors import ApiError
from puna.server.replies import dumps

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def body_of(error: ApiError) -> dict[str, Any]:
    kind = _TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": None}


def error_event(error: ApiError, request_id: str) -> bytes:
    """An answer that broke off after it began: the status has gone out already."""
    return b"event: error\ndata: " + dumps({**body_of(error), "request_id": request_id}) + b"\n\n"
