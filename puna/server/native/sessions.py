"""Sessions in files: /admin/sessions, and what saves and restores one. Needs a key with the scope "admin".

A session is known by a name in the operator's folder, never by a path. Whatever is restored is in the cache
of its model like any prompt that was answered before: requests that begin like it find it. Where tenants
do not share cached prompts, it is in the cache of one of them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HttpRequest

from puna.core import PunaError
from puna.server.errors import ApiError, bad, from_puna, not_found
from puna.server.openai.fields import Body
from puna.server.openai.messages import Tool, Turn, as_text_reads, definition
from puna.server.served import ServedModel
from puna.server.service import Service
from puna.server.storage.plain import is_plain
from puna.server.strict import Route

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SUFFIX = ".session"
_MB = 1_000_000

T = TypeVar("T")


class Restore(Body):
    model: str | None = None
    name: str
    tenant: str | None = None  # whose requests find it, where tenants are kept apart; the key's own


class Save(Restore):
    prompt: str | list[int] | None = None
    messages: Annotated[list[Turn], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["Operations"], route_class=Route)

    @router.get("/admin/sessions")
    async def listed(http: HttpRequest) -> dict[str, Any]:
        """The sessions that can be restored."""
        service.authenticate(http, "admin")
        files = sorted(_folder(service).glob(f"*{_SUFFIX}"))
        found = [(path.name.removesuffix(_SUFFIX), path.lstat()) for path in files if is_plain(path)]
        rows = [{"name": name, "bytes": at.st_size, "saved": int(at.st_mtime)} for name, at in found]
        return {"data": [row for row in rows if _NAME.fullmatch(str(row["name"]))]}

    @router.post("/admin/sessions/save")
    async def save(body: Save, http: HttpRequest) -> dict[str, Any]:
        """Write what was computed of a prompt or a conversation to a file; an older one is replaced."""
        salt = _salt(service, http, body)
        path = _path(service, body.name)
        prompt: Any = body.prompt
        if (body.prompt is None) == (body.messages is None):
            raise bad("prompt", "a session is of a prompt or of messages; give one of the two")
        if body.messages is not None:
            prompt = [as_text_reads(turn) for turn in body.messages]
        tools = [definition(tool) for tool in body.tools] if body.tools else None
        most = service.config.max_session_mb * _MB
        found = await _with_model(
            service,
            http,
            body,
            lambda model: model.save_session(path, prompt, tools=tools, max_bytes=most, cache_salt=salt),
        )
        return {"name": body.name, "tokens": len(found.tokens), "bytes": found.n_bytes}

    @router.post("/admin/sessions/restore")
    async def restore(body: Restore, http: HttpRequest) -> dict[str, Any]:
        """Put a session back into the cache of its model."""
        salt = _salt(service, http, body)
        path = _path(service, body.name)
        if not is_plain(path):
            raise not_found(f"there is no session {body.name!r}; GET /admin/sessions lists them", "name")
        most = service.config.max_session_mb * _MB
        found = await _with_model(
            service, http, body, lambda model: model.load_session(path, max_bytes=most, cache_salt=salt)
        )
        answer = {"name": body.name, "tokens": len(found.tokens), "bytes": found.n_bytes}
        return {**answer, "messages": list(found.messages)}

    return router


def _salt(service: Service, http: HttpRequest, body: Restore) -> str:
    """Of the requests whose cache it is. Raises ApiError 401 or 403 for whoever is no admin."""
    account = service.authenticate(http, "admin")
    return service.cache_salt(account.tenant if body.tenant is None else body.tenant)


def _folder(service: Service) -> Path:
    if not service.config.sessions:
        raise ApiError(
            403, "sessions are off; start the server with a folder for them (--sessions)", code="sessions_off"
        )
    return Path(service.config.sessions)


def _path(service: Service, name: str) -> Path:
    folder = _folder(service)
    if not _NAME.fullmatch(name):
        raise bad(
            "name",
            "name must be 1 to 100 letters, digits, dots, dashes or underscores, the first of them a letter "
            f"or digit, got {name!r:.120}",
        )
    return folder / f"{name}{_SUFFIX}"


async def _with_model(
    service: Service, http: HttpRequest, body: Restore, work: Callable[[ServedModel], T]
) -> T:
    """What `work` gives, done beside the event loop."""
    service.check_room()
    try:
        with await service.use(http, body.model or service.models.default) as model:
            return await asyncio.to_thread(work, model)
    except PunaError as error:
        raise from_puna(error, "name") from None
