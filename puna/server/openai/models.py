"""GET /v1/models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest

from puna.server.anthropic import models as anthropic
from puna.server.anthropic.errors import body_of
from puna.server.errors import not_found
from puna.server.served import ModelCard
from puna.server.service import Service
from puna.server.strict import Route


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["OpenAI"], route_class=Route)
    service.dialects.add("/v1/models", body_of, header=anthropic.HEADER)

    @router.get("/v1/models")
    async def models(http: HttpRequest) -> dict[str, Any]:
        """The models that requests may name; in Anthropic's shape for its clients."""
        service.authenticate(http)
        if anthropic.HEADER in http.headers:
            return anthropic.page(service.models.cards(), http.query_params)
        return {"object": "list", "data": [listed(card) for card in service.models.cards()]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str, http: HttpRequest) -> dict[str, Any]:
        """One model."""
        service.authenticate(http)
        cards = service.models.cards()
        if anthropic.HEADER in http.headers:
            return anthropic.described(find(cards, name))
        return listed(find(cards, name))

    return router


def find(cards: Sequence[ModelCard], name: str) -> ModelCard:
    """Raises ApiError 404."""
    for card in cards:
        if card.name == name:
            return card
    raise not_found(f"there is no model {name!r} here; GET /v1/models lists them", "model", "model_not_found")


def listed(card: ModelCard) -> dict[str, Any]:
    """A model in OpenAI's shape."""
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "puna",
        "max_model_len": card.context,
        "state": card.state,
        "root": card.parent or card.name,
        "parent": card.parent,
    }
