"""POST /v1/embeddings."""

from __future__ import annotations

from base64 import b64encode
from typing import Annotated, ClassVar, Literal

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puna.engine.pooling import normalized
from puna.server.embeddings import embedded
from puna.server.openai.fields import Body, ignored
from puna.server.replies import dumps
from puna.server.service import Service
from puna.server.strict import Route


class EmbeddingsRequest(Body):
    harmless: ClassVar[tuple[str, ...]] = ("user",)

    model: Annotated[str, Field(min_length=1)]
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        if isinstance(self.input, str):
            return [self.input]
        texts = [item for item in self.input if not isinstance(item, int)]
        return texts or [[item for item in self.input if isinstance(item, int)]]


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["OpenAI"], route_class=Route)

    @router.post("/v1/embeddings", response_model=None)
    async def embeddings(body: EmbeddingsRequest, http: HttpRequest) -> Response:
        """Embed texts."""
        call, rows = await embedded(
            service, http, "embeddings", body.model, body.inputs, dimensions=body.dimensions
        )
        in_base64 = body.encoding_format == "base64"
        made = [_in_base64(row) if in_base64 else row.tolist() for row in map(normalized, rows)]
        answer = {
            "object": "list",
            "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(made)],
            "model": call.model,
            "usage": {"prompt_tokens": call.n_prompt, "total_tokens": call.n_prompt},
        }
        headers = {**call.headers, **ignored(body, await http.json())}
        return Response(dumps(answer), 200, headers, "application/json")

    return router


def _in_base64(row_D: NDArray[np.float32]) -> str:
    """As OpenAI has it: float32, little-endian."""
    return b64encode(row_D.astype("<f4").tobytes()).decode()
