"""/v1/files: upload, list, retrieve, content, delete."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Annotated, Any, BinaryIO
from urllib.parse import quote

from fastapi import APIRouter, Query
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from puna.core import PunaError
from puna.server.errors import ApiError, bad, content_lost, from_puna, not_found
from puna.server.openai.lists import Order, listed
from puna.server.openai.uploads import receive
from puna.server.service import Service
from puna.server.storage.files import StoredFile
from puna.server.strict import Route

PURPOSES = ("batch", "vision", "user_data")
_PIECE = 256 << 10  # bytes of a content that are read at a time
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file", "purpose"],
                "properties": {
                    "file": {"type": "string", "format": "binary"},
                    "purpose": {"enum": [*PURPOSES]},
                    _ANCHOR: {"const": "created_at"},
                    _SECONDS: {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
                },
            }
        }
    },
}
_FORM = frozenset({"file", "purpose", _ANCHOR, _SECONDS})


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["OpenAI"], route_class=Route)
    files = service.files

    @router.post("/v1/files", openapi_extra={"requestBody": _BODY})
    async def upload(http: HttpRequest) -> dict[str, Any]:
        """Keep a file: multipart/form-data with file and purpose (batch, vision, user_data)."""
        account = service.authenticate(http)
        service.check_room()
        try:
            arriving = await asyncio.to_thread(files.begin, account.tenant)
            try:
                form = await receive(http, arriving, _FORM)
                purpose, keep = _purpose(form.fields), expiry(form.fields)
                key_id, name = account.key_id or "", form.filename or ""
                kept = await asyncio.to_thread(arriving.keep, key_id, name, purpose, keep)
            finally:
                await asyncio.to_thread(arriving.close)
        except PunaError as error:
            raise from_puna(error, "file") from None
        return kept.to_json()

    _add_stored(router, service)
    return router


def _add_stored(router: APIRouter, service: Service) -> None:
    files = service.files

    @router.get("/v1/files")
    async def list_files(
        http: HttpRequest,
        purpose: str | None = None,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
        order: Order = "desc",
    ) -> dict[str, Any]:
        """The files of the key's tenant."""
        tenant = service.authenticate(http).tenant
        is_rising = order == "asc"
        if purpose is not None and purpose not in (*PURPOSES, "batch_output"):
            raise bad(
                "purpose",
                f"purpose must be one of {', '.join(PURPOSES)}, batch_output, found {purpose!r:.80}",
            )
        page = await asyncio.to_thread(files.list, tenant, purpose, after, limit, is_rising=is_rising)
        if page is None:
            raise _missing(after or "", "after")
        return listed([file.to_json() for file in page[0]], page[1])

    @router.get("/v1/files/{id}")
    async def retrieve(id: str, http: HttpRequest) -> dict[str, Any]:
        """What is known of a file."""
        return (await _find(service, http, id)).to_json()

    @router.get("/v1/files/{id}/content", response_model=None)
    async def content(id: str, http: HttpRequest) -> Response:
        """The bytes of a file."""
        file = await _find(service, http, id)
        try:
            found = await asyncio.to_thread(files.open, file.id)
        except OSError:
            raise content_lost(id) from None
        name = quote(file.filename)
        named = f'filename="{name}"' if name == file.filename else f"filename*=utf-8''{name}"
        headers = {
            "content-length": str(os.fstat(found.fileno()).st_size),
            "content-disposition": f"attachment; {named}",
            "x-content-type-options": "nosniff",
        }
        return StreamingResponse(_pieces(found), headers=headers, media_type="application/octet-stream")

    @router.delete("/v1/files/{id}")
    async def delete(id: str, http: HttpRequest) -> dict[str, Any]:
        """Forget a file."""
        tenant = service.authenticate(http).tenant
        if not await asyncio.to_thread(files.remove, tenant, id):
            raise _missing(id)
        return {"id": id, "object": "file", "deleted": True}


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(_PIECE):
            yield piece


async def _find(service: Service, http: HttpRequest, id: str) -> StoredFile:
    file = await asyncio.to_thread(service.files.find, service.authenticate(http).tenant, id)
    if file is None:
        raise _missing(id)
    return file


def _missing(id: str, param: str = "id") -> ApiError:
    return not_found(f"there is no file {id!r}; GET /v1/files lists them", param, "file_not_found")


def _purpose(fields: Mapping[str, str]) -> str:
    purpose = fields.get("purpose")
    if purpose is None:
        raise bad("purpose", "purpose is missing", code="missing_required_parameter")
    if purpose not in PURPOSES:
        raise bad("purpose", f"purpose must be one of {', '.join(PURPOSES)}, found {purpose!r:.80}")
    return purpose


def expiry(fields: Mapping[str, Any]) -> timedelta | None:
    """How long a file is kept, where the request says so; OpenAI's bounds."""
    if _ANCHOR not in fields and _SECONDS not in fields:
        return None
    if fields.get(_ANCHOR) != "created_at":
        raise bad(_ANCHOR, f"{_ANCHOR} must be created_at, found {fields.get(_ANCHOR)!r:.80}")
    text = str(fields.get(_SECONDS))
    if not (text.isascii() and text.isdecimal() and 3600 <= int(text) <= 2_592_000):
        raise bad(_SECONDS, f"{_SECONDS} must be from 3600 to 2592000, found {text!r:.80}")
    return timedelta(seconds=int(text))
