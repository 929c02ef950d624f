"""What the operator asks of the ledger: /admin/usage, /admin/usage.csv, /admin/audits, /admin/keys.

Needs a key with the scope "admin", on every address."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from puna.core import BadValue, PunaError
from puna.server.errors import from_puna
from puna.server.service import Service
from puna.server.strict import Route
from puna.server.tenants.accounts import Accounts
from puna.server.tenants.audits import counts, latest
from puna.server.tenants.queries import Filters, export_csv, moment, totals

By = Literal["tenant", "key", "model", "day"]


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["Operations"], route_class=Route)

    def accounts(http: HttpRequest) -> Accounts:
        service.authenticate(http, "admin")
        return service.accounts

    @router.get("/admin/usage")
    async def usage(
        http: HttpRequest,
        by: Annotated[Sequence[By], Query()] = ("tenant", "model"),
        since: str | None = None,
        until: str | None = None,
        tenant: str | None = None,
        model: str | None = None,
    ) -> dict[str, Any]:
        """Sums of the ledger."""
        database = accounts(http).database
        filters = _filters(since, until, tenant, model)
        rows = await asyncio.to_thread(totals, database, list(by), filters)
        return {"data": [asdict(row) for row in rows]}

    @router.get("/admin/usage.csv", response_model=None)
    async def usage_csv(
        http: HttpRequest,
        since: str | None = None,
        until: str | None = None,
        tenant: str | None = None,
        model: str | None = None,
    ) -> Response:
        """Every row of the ledger."""
        database = accounts(http).database
        rows = export_csv(database, _filters(since, until, tenant, model))
        return StreamingResponse(rows, media_type="text/csv; charset=utf-8")

    @router.get("/admin/keys")
    async def keys(http: HttpRequest) -> dict[str, Any]:
        """The keys, without what is secret of them."""
        found = await asyncio.to_thread(accounts(http).keys.list)
        return {"data": [key.to_json() for key in found]}

    _add_audits(router, accounts)
    return router


def _add_audits(router: APIRouter, accounts: Callable[[HttpRequest], Accounts]) -> None:
    @router.get("/admin/audits")
    async def audited(
        http: HttpRequest,
        since: str | None = None,
        until: str | None = None,
        tenant: str | None = None,
        model: str | None = None,
        action: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """What safety checks found: how often, and in which calls of late."""
        database = accounts(http).database
        filters = _filters(since, until, tenant, model)
        try:
            rows = await asyncio.to_thread(partial(latest, database, filters, action=action, limit=limit))
        except BadValue as error:
            raise from_puna(error, "action") from None
        found = await asyncio.to_thread(counts, database, filters)
        names = ("tenant", "policy", "action")
        summed = [{**dict(zip(names, key, strict=True)), "requests": n} for key, n in found.items()]
        return {"counts": summed, "data": [row.to_json() for row in rows]}


def _filters(since: str | None, until: str | None, tenant: str | None, model: str | None) -> Filters:
    try:
        return Filters(
            since=moment(since) if since else None,
            until=moment(until) if until else None,
            tenant=tenant,
            model=model,
        )
    except PunaError as error:
        raise from_puna(error, "since") from None
