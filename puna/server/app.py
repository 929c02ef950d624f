"""The application: routes of every API, and what all of them share: limits of bodies, errors, logs."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from puna.core import PunaError
from puna.server import guard
from puna.server.calls import Service
from puna.server.config import ServerConfig
from puna.server.errors import ApiError, from_puna
from puna.server.native import adapters, admin, operations, tokens
from puna.server.openai import chat, completions, models
from puna.server.served import Models
from puna.server.tenants.accounts import Accounts
from puna.server.validation import explained

_log = logging.getLogger("puna.server")


def create_app(config: ServerConfig, served: Models, accounts: Accounts) -> FastAPI:
    """The ASGI application that serves `served` to those whom `accounts` lets in."""
    service = Service(config, served, accounts)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        served.start()
        yield
        service.is_draining = True
        await served.stop()

    app = FastAPI(
        title="Puna",
        version=version("puna"),
        summary="Llama models over OpenAI's API.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.service = service
    for part in (chat, completions, models, tokens, operations, admin, adapters):
        app.include_router(part.routes(service))
    _add_errors(app, service)
    app.add_middleware(guard.Guard, service=service)
    if config.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origin),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    return app


def _add_errors(app: FastAPI, service: Service) -> None:
    def answer(http: HttpRequest, error: ApiError) -> Response:
        service.metrics.rejected.labels(str(error.status), error.code or error.kind).inc()
        return JSONResponse(service.dialects.body(http.url.path, error), error.status, error.headers)

    def on(kind: type[Exception], turn: Callable[[Any], ApiError]) -> None:
        async def handler(http: HttpRequest, error: Exception) -> Response:
            return answer(http, turn(error))

        app.add_exception_handler(kind, handler)

    def unexpected(error: Exception) -> ApiError:
        _log.error("a request failed on %s", type(error).__name__, exc_info=error)
        return ApiError(500, f"the server failed on {type(error).__name__}; see its log", kind="server_error")

    on(ApiError, lambda error: error)
    on(PunaError, from_puna)
    on(RequestValidationError, explained)
    on(HTTPException, _http)
    on(Exception, unexpected)


def _http(error: HTTPException) -> ApiError:
    """What the framework says of itself: no such path, no such method."""
    messages = {
        404: "there is no such path; GET /openapi.json lists them",
        405: "this path does not know that method; GET /openapi.json lists them",
    }
    message = messages.get(error.status_code, str(error.detail))
    return ApiError(error.status_code, message, headers=dict(error.headers or {}))
