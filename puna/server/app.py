"""The application: routes of every API, and what all of them share: limits of bodies, errors, logs."""

from __future__ import annotations

import asyncio
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
from starlette.responses import Response

from puna.core import PunaError
from puna.server import guard, ollama
from puna.server.anthropic import messages
from puna.server.batches.runner import Runner
from puna.server.config import ServerConfig
from puna.server.errors import ApiError, from_puna
from puna.server.llama_api import routes as llama_api
from puna.server.native import adapters, admin, operations, sessions, tokens
from puna.server.openai import batches, chat, completions, embeddings, files, models, moderations
from puna.server.openai.responses import conversations
from puna.server.openai.responses import routes as responses
from puna.server.page import routes as page
from puna.server.replies import dumps
from puna.server.served import Library, Models
from puna.server.service import Service
from puna.server.tenants.accounts import Accounts
from puna.server.validation import explained

_log = logging.getLogger("puna.server")


def create_app(
    config: ServerConfig, served: Models, accounts: Accounts, library: Library | None = None
) -> FastAPI:
    """The ASGI application that serves `served` to those whom `accounts` lets in.

    With a `library`, its operators may change what models are on this machine.
    """
    service = Service(config, served, accounts, library)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        looking = asyncio.create_task(service.rates.run())
        served.start()
        runner.start()
        yield
        service.is_draining = True
        looking.cancel()
        await runner.close()
        await served.stop()
        if service.tasks:
            await asyncio.wait(service.tasks)
        await asyncio.to_thread(service.traces.close)
        service.close()

    app = FastAPI(
        title="Puna",
        version=version("puna"),
        summary="Llama models over OpenAI's API.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.service = service
    app.state.runner = runner = Runner(app, service)
    openai = (chat, completions, responses, conversations, files, embeddings, moderations, models)
    others = (messages, llama_api, *ollama.PARTS, tokens, operations, admin, adapters, sessions, page)
    routers = [part.routes(service) for part in (*openai, *others)]
    paths = frozenset(getattr(route, "path", "") for router in routers for route in router.routes)
    for router in (*routers, batches.routes(service, runner, paths)):
        app.include_router(router)
    service.dialects.add("/api", ollama.error_body)
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
        service.watch.refused(http.scope, error)
        body = dumps(service.dialects.body(http.scope, error))
        return Response(body, error.status, error.headers, "application/json")

    def on(kind: type[Exception], turn: Callable[[Any], ApiError]) -> None:
        async def handler(http: HttpRequest, error: Exception) -> Response:
            return answer(http, turn(error))

        app.add_exception_handler(kind, handler)

    def unexpected(error: Exception) -> ApiError:
        _log.error("a request failed on %s", type(error).__name__, exc_info=error)
        return ApiError(500, f"the server failed on {type(error).__name__}; see its log", kind="server_error")

    def too_deep(_: RecursionError) -> ApiError:
        """Of whoever walks through what a request nests: the depth is the request's."""
        found = "lists and objects of a request must not be nested so deeply; make them flatter"
        return ApiError(400, found)

    def not_unicode(error: UnicodeEncodeError) -> ApiError:
        """JSON has escapes for what is no text, and nothing on the way has refused one."""
        if error.reason != "surrogates not allowed":
            return unexpected(error)
        code = ord(error.object[error.start])
        found = f"texts must be Unicode, found half a surrogate pair (U+{code:04X}); take it out"
        return ApiError(400, found)

    on(ApiError, lambda error: error)
    on(UnicodeEncodeError, not_unicode)
    on(RecursionError, too_deep)
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
