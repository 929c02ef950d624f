"""POST /api/embed, and /api/embeddings, its predecessor, whose vectors are not normalized."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puna.engine.pooling import normalized
from puna.server.calls import Call
from puna.server.embeddings import embedded
from puna.server.ollama import wire
from puna.server.ollama.fields import KeepAlive, Named
from puna.server.replies import dumps
from puna.server.service import Service


class _Embedding(Named):
    harmless: ClassVar[tuple[str, ...]] = ("options",)  # nothing is sampled, and the context is what it is
    keep_alive: KeepAlive | None = None


class EmbedRequest(_Embedding):
    input: str | list[str]
    truncate: bool = False  # Ollama's default is to cut, which nobody would notice
    dimensions: Annotated[int, Field(ge=1)] | None = None


class EmbeddingsRequest(_Embedding):
    prompt: str


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["Ollama"], route_class=wire.AnyType)

    @router.post("/api/embed", response_model=None)
    async def embed(body: EmbedRequest, http: HttpRequest) -> Response:
        """Embed texts; each vector has the norm 1."""
        inputs = [body.input] if isinstance(body.input, str) else body.input
        call, rows = await embedded(
            service,
            http,
            "api/embed",
            body.name,
            inputs,
            dimensions=body.dimensions,
            truncate=body.truncate,
        )
        measured = wire.measures(call)
        found = {
            "model": call.model,
            "embeddings": [normalized(row).tolist() for row in rows],
            **{name: measured[name] for name in ("total_duration", "load_duration", "prompt_eval_count")},
        }
        return await _answer(service, call, body, http, found)

    @router.post("/api/embeddings", response_model=None)
    async def embeddings(body: EmbeddingsRequest, http: HttpRequest) -> Response:
        """Embed one text."""
        call, (row,) = await embedded(
            service, http, "api/embeddings", body.name, [body.prompt], param="prompt"
        )
        return await _answer(service, call, body, http, {"embedding": row.tolist()})

    return router


async def _answer(
    service: Service, call: Call, body: _Embedding, http: HttpRequest, found: dict[str, Any]
) -> Response:
    is_obeyed = wire.let_go(service, call, http, body.keep_alive)
    headers = {**call.headers, **wire.ignored(await http.json(), is_obeyed=is_obeyed)}
    return Response(dumps(found), 200, headers, "application/json")
