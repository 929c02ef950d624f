"""GET /v1/models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest

from puna.server.calls import Service
from puna.server.errors import not_found
from puna.server.served import ModelCard


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["OpenAI"])

    @router.get("/v1/models")
    async def models(http: HttpRequest) -> dict[str, Any]:
        """The models that requests may name."""
        service.authenticate(http)
        return {"object": "list", "data": [_openai(card) for card in service.models.cards()]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str, http: HttpRequest) -> dict[str, Any]:
        """One model."""
        service.authenticate(http)
        for card in service.models.cards():
            if card.name == name:
                return _openai(card)
        raise not_found(
            f"there is no model {name!r} here; GET /v1/models lists them", "model", "model_not_found"
        )

    return router


def _openai(card: ModelCard) -> dict[str, Any]:
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
