"""Adapters while the server runs: POST /v1/load_lora_adapter and /v1/unload_lora_adapter, named as vLLM names
them. Both need a key with the scope "admin", on every address: the first reads a path of the server.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HttpRequest

from puna.core import PunaError, UnknownModel
from puna.server.errors import from_puna
from puna.server.openai.fields import Body
from puna.server.service import Service
from puna.server.strict import Route

Name = Annotated[str, Field(min_length=1, max_length=200)]


class LoadAdapter(Body):
    lora_name: Name
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
    base_model_name: Name | None = None


class UnloadAdapter(Body):
    lora_name: Name


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["Operations"], route_class=Route)

    @router.post("/v1/load_lora_adapter")
    async def load(body: LoadAdapter, http: HttpRequest) -> dict[str, Any]:
        """Serve a model with a low-rank adapter, under a name of its own, too."""
        service.authenticate(http, "admin")
        try:
            await service.models.load_adapter(body.base_model_name, body.lora_name, body.lora_path)
        except PunaError as error:
            param = "base_model_name" if isinstance(error, UnknownModel) else "lora_path"
            raise from_puna(error, param) from None
        return {"id": body.lora_name, "object": "model", "loaded": True}

    @router.post("/v1/unload_lora_adapter")
    async def unload(body: UnloadAdapter, http: HttpRequest) -> dict[str, Any]:
        """No new request gets the adapter; those that have it go on to their end."""
        service.authenticate(http, "admin")
        try:
            await service.models.unload_adapter(body.lora_name)
        except PunaError as error:
            raise from_puna(error, "lora_name") from None
        return {"id": body.lora_name, "object": "model", "loaded": False}

    return router
