"""/v1/batches: create, list, retrieve, cancel."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.requests import Request as HttpRequest

from puna.server.batches.runner import Runner
from puna.server.errors import ApiError, bad, not_found
from puna.server.openai.fields import Body
from puna.server.openai.lists import listed
from puna.server.openai.responses.items import new_id
from puna.server.openai.responses.request import Id, Metadata
from puna.server.service import Service
from puna.server.storage import batches
from puna.server.storage.batches import Batch
from puna.server.strict import Route

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
_TIMES = (
    "created_at", "in_progress_at", "finalizing_at", "completed_at", "failed_at", "cancelling_at",
    "cancelled_at", "expires_at", "expired_at",
)  # fmt: skip


class ExpiresAfter(Body):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class CreateBatch(Body):
    input_file_id: Id
    endpoint: str
    completion_window: Annotated[str, Field(pattern=r"^([1-9]|[1-9][0-9]|1[0-5][0-9]|16[0-8])h$")]
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


def routes(service: Service, runner: Runner, paths: frozenset[str]) -> APIRouter:
    """`paths` are those that the server has."""
    router = APIRouter(tags=["OpenAI"], route_class=Route)
    database = service.accounts.database
    endpoints = [path for path in ENDPOINTS if path in paths]

    @router.post("/v1/batches")
    async def create(body: CreateBatch, http: HttpRequest) -> dict[str, Any]:
        """Answer the requests of a file in the background."""
        return await _create(service, runner, endpoints, body, http)

    @router.get("/v1/batches")
    async def list_batches(
        http: HttpRequest, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> dict[str, Any]:
        """The batches of the key's tenant, the newest first."""
        tenant = service.authenticate(http).tenant
        page = await asyncio.to_thread(batches.newest, database, tenant, after, limit)
        if page is None:
            raise _missing(after or "", "after")
        return listed([to_json(batch) for batch in page[0]], page[1])

    @router.get("/v1/batches/{id}")
    async def retrieve(id: str, http: HttpRequest) -> dict[str, Any]:
        """A batch."""
        tenant = service.authenticate(http).tenant
        batch = await asyncio.to_thread(batches.find, database, tenant, id)
        if batch is None:
            raise _missing(id)
        return to_json(batch)

    @router.post("/v1/batches/{id}/cancel")
    async def cancel(id: str, http: HttpRequest) -> dict[str, Any]:
        """Stop a batch; what it has answered is kept."""
        tenant = service.authenticate(http).tenant
        batch = await asyncio.to_thread(batches.cancel, database, tenant, id)
        if batch is None:
            raise _missing(id)
        if batch["status"] not in ("cancelling", "cancelled"):
            message = (
                f"{id} is {batch['status']}, only a batch that is validating or in progress can be cancelled"
            )
            raise ApiError(409, message, param="id", code="batch_not_cancellable")
        runner.cancel(id)
        return to_json(batch)

    return router


async def _create(
    service: Service, runner: Runner, endpoints: Sequence[str], body: CreateBatch, http: HttpRequest
) -> dict[str, Any]:
    account = service.authenticate(http)
    service.check_room()
    if body.endpoint not in endpoints:
        raise bad("endpoint", f"endpoint must be one of {', '.join(endpoints)}, found {body.endpoint!r:.80}")
    file = await asyncio.to_thread(service.files.find, account.tenant, body.input_file_id)
    if file is None:
        raise not_found(f"there is no file {body.input_file_id!r}", "input_file_id", "file_not_found")
    if file.purpose != "batch":
        message = f"the file must have the purpose batch, {file.id} has {file.purpose}; upload it again"
        raise bad("input_file_id", message)
    row = _row(body, runner)
    row |= {"tenant": account.tenant, "key_id": account.key_id or ""}
    batch = await asyncio.to_thread(batches.create, service.accounts.database, row)
    runner.adopt(batch)
    return to_json(batch)


def _row(body: CreateBatch, runner: Runner) -> dict[str, Any]:
    now = datetime.now(UTC)
    expiry = body.output_expires_after
    return {
        "id": new_id("batch"),
        "endpoint": body.endpoint,
        "input_file_id": body.input_file_id,
        "status": "validating",
        "request": {
            "completion_window": body.completion_window,
            "metadata": body.metadata,
            "output_expires_after": expiry.seconds if expiry else None,
        },
        "models": [],
        "created_at": now,
        "expires_at": now + timedelta(hours=int(body.completion_window[:-1])),
        "owner": runner.id,
        "owned_until": runner.lease(),
    }


def _missing(id: str, param: str = "id") -> ApiError:
    return not_found(f"there is no batch {id!r}; GET /v1/batches lists them", param, "batch_not_found")


def to_json(batch: Batch) -> dict[str, Any]:
    times = {name: None if batch[name] is None else int(batch[name].timestamp()) for name in _TIMES}
    errors = batch["errors"]
    return {
        "id": batch["id"],
        "object": "batch",
        "endpoint": batch["endpoint"],
        "input_file_id": batch["input_file_id"],
        "output_file_id": batch["output_file_id"],
        "error_file_id": batch["error_file_id"],
        "completion_window": batch["request"]["completion_window"],
        "status": batch["status"],
        "errors": None if errors is None else {"object": "list", "data": errors},
        "request_counts": {
            "total": batch["n_total"],
            "completed": batch["n_completed"],
            "failed": batch["n_failed"],
        },
        "metadata": batch["request"]["metadata"],
        "model": batch["models"][0] if len(batch["models"]) == 1 else None,
        "usage": batch["usage"],
        **times,
    }
