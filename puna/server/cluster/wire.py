"""What goes between the front and replicas: a request as a whole, and its answer in parts as it is made."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

Scope = MutableMapping[str, Any]
_KEPT = ("method", "path", "raw_path", "query_string", "root_path", "scheme", "http_version", "headers")
_ADDRESSES = ("client", "server")


@dataclass(frozen=True, slots=True)
class Envelope:
    """A request of HTTP."""

    scope: dict[str, Any]  # of ASGI, without what only its own process can use
    body: bytes
    keys: tuple[bytes, ...] | None = None  # of its prompt, for the router; None: it has none
    replica: str | None = None  # that must answer it
    id: str = field(
        default_factory=lambda: uuid4().hex
    )  # of its row in the ledger, also when it is sent again


@dataclass(frozen=True, slots=True)
class Part:
    """Of an answer. The first one has the status; the answer ends with the last."""

    body: bytes
    status: int = 0  # 0: the answer goes on
    headers: tuple[tuple[bytes, bytes], ...] = ()
    replica: str = ""  # that answers


def packed(scope: Scope) -> dict[str, Any]:
    """The scope of a request, to be sent."""
    kept = {name: scope[name] for name in _KEPT if name in scope}
    kept["headers"] = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
    return kept | {name: scope.get(name) for name in _ADDRESSES}


def unpacked(envelope: Envelope) -> Scope:
    """The scope as the replica's application gets it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        **envelope.scope,
        "state": {"request_id": envelope.id},
    }
