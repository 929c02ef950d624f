"""What models there are: /api/tags, /api/show, /api/ps, /api/version."""

from __future__ import annotations

from importlib.metadata import version
from time import time
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puna.core import PunaError
from puna.server.errors import ApiError, from_puna
from puna.server.ollama import wire
from puna.server.ollama.fields import Asked, Named, is_let_go
from puna.server.served import ModelCard, ModelFacts
from puna.server.service import Service


class ShowRequest(Named):
    verbose: bool | None = None  # nothing is left out either way


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["Ollama"], route_class=wire.AnyType)

    @router.head("/", include_in_schema=False)
    async def alive() -> Response:
        """How Ollama's command line finds out that a server is there."""
        return Response()

    @router.get("/api/version")
    async def server_version() -> dict[str, str]:
        """The version of the server."""
        return {"version": version("puna")}

    @router.get("/api/tags")
    async def tags(http: HttpRequest) -> dict[str, Any]:
        """The models that requests may name."""
        service.authenticate(http)
        return {"models": [await _listed(service, card) for card in service.models.cards()]}

    @router.get("/api/ps")
    async def running(http: HttpRequest) -> dict[str, Any]:
        """The models in memory."""
        service.authenticate(http)
        loaded = service.models.loaded()
        cards = [card for card in service.models.cards() if card.name in loaded]
        return {"models": [await _running(service, card) for card in cards]}

    @router.post("/api/show")
    async def show(body: ShowRequest, http: HttpRequest) -> dict[str, Any]:
        """What the files of a model say of it."""
        service.authenticate(http)
        return await _shown(service, body.name)

    return router


async def _running(service: Service, card: ModelCard) -> dict[str, Any]:
    left_s = service.config.idle_unload if card.idle_left_s is None else card.idle_left_s
    expires_at = wire.moment(time() + left_s) if service.config.idle_unload else wire.FOREVER
    more = {"expires_at": expires_at, "size_vram": 0, "context_length": card.context}
    return {**await _listed(service, card), **more}


async def _listed(service: Service, card: ModelCard) -> dict[str, Any]:
    try:
        facts = await service.models.facts(card.name)
        known = {"digest": facts.sha256, "details": details(facts)}
    except PunaError:  # a damaged file, which whoever asks for the model is told of
        known = {"digest": "", "details": {}}
    return {
        "name": card.name,
        "model": card.name,
        "modified_at": wire.moment(card.created),
        "size": card.size,
        **known,
    }


async def _shown(service: Service, name: str) -> dict[str, Any]:
    try:
        facts = await service.models.facts(name)
    except PunaError as error:
        raise from_puna(error, "model") from None
    card = next(card for card in service.models.cards() if card.name == name)
    params = facts.default_params
    return {
        "license": facts.licence,
        "modelfile": f"FROM {name}\n",
        "parameters": f"temperature {params.temperature:g}\ntop_p {params.top_p:g}",
        "template": facts.template,
        "details": details(facts),
        "model_info": dict(facts.metadata),
        "capabilities": list(facts.capabilities),
        "modified_at": wire.moment(card.created),
    }


async def loaded(service: Service, http: HttpRequest, body: Asked) -> dict[str, Any]:
    """The answer to a request without a prompt: the model is in memory, as it asks, or with a keep_alive of
    0 is not any more, which only an operator may ask for. Raises ApiError.
    """
    account = service.authenticate(http)
    account.check_model(body.name)
    unloads = is_let_go(body.keep_alive)
    if unloads:
        await _unload(service, http, body.name)
    else:
        with await service.use(http, body.name):
            pass
    reason = "unload" if unloads else "load"
    return {"model": body.name, "created_at": wire.moment(), "done": True, "done_reason": reason}


async def _unload(service: Service, http: HttpRequest, name: str) -> None:
    service.check_operator(http)
    try:
        is_done = await service.models.unload(name)
    except PunaError as error:
        raise from_puna(error, "model") from None
    if not is_done:
        message = f"{name} is answering requests and stays in memory; ask again when it has ended"
        raise ApiError(409, message, param="keep_alive")


def details(facts: ModelFacts) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": facts.format,
        "family": facts.family,
        "families": [facts.family],
        "parameter_size": _rounded(facts.n_parameters),
        "quantization_level": facts.quantization,
    }


def _rounded(n: int) -> str:
    """8.0B, 134.52M: as Ollama writes numbers of parameters."""
    for unit, name, digits in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 2)):
        if n >= unit:
            return f"{n / unit:.{digits}f}{name}"
    return str(n)
