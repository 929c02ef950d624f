"""POST /v1/moderations, by a guard model that the server has."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puna.safety.llama_guard import Guard
from puna.safety.taxonomy import OPENAI, openai_names
from puna.safety.verdict import Verdict
from puna.server.images import resolved
from puna.server.moderation import check_number, judged
from puna.server.openai.fields import Body
from puna.server.openai.messages import ImagePart, TextPart
from puna.server.replies import dumps
from puna.server.service import Service
from puna.server.strict import Route

_OPENAIS = ("omni-moderation", "text-moderation")  # what its models are called: any guard will do

Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ModerationRequest(Body):
    input: str | list[str] | list[Part]
    model: str | None = None

    @property
    def inputs(self) -> list[str | list[dict[str, Any]]]:
        """Texts to be judged one by one, or parts that are one message."""
        if isinstance(self.input, str):
            return [self.input]
        texts = [item for item in self.input if isinstance(item, str)]
        parts = [item.model_dump() for item in self.input if not isinstance(item, str)]
        return [parts] if parts else [*texts]


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["OpenAI"], route_class=Route)

    @router.post("/v1/moderations", response_model=None)
    async def moderations(body: ModerationRequest, http: HttpRequest) -> Response:
        """Say which texts are unsafe, and how."""
        service.authenticate(http)  # before anything is fetched for a stranger
        check_number(len(body.inputs), "input")
        turns = [{"role": "user", "content": item} for item in body.inputs]
        contents = [turn["content"] for turn in await resolved(service.config.image_host, turns)]
        found = await judged(
            service,
            http,
            "moderations",
            body.model,
            [[("user", content)] for content in contents],
            any_guard=_OPENAIS,
            param="input",
        )
        has_images = not isinstance(body.inputs[0], str)
        answer = {
            "id": f"modr-{found.call.id}",
            "model": found.call.model,
            "results": [_result(found.guard, made, has_images) for made in found.verdicts],
        }
        return Response(dumps(answer), 200, found.call.headers, "application/json")

    return router


def _result(guard: Guard, made: Verdict, has_images: bool) -> dict[str, Any]:
    """OpenAI's categories, then the guard's own by their names. A score is the probability of "unsafe" for
    what was named, and 0 for all else; `unsafe_score` has it whatever was named."""
    named = set(made.categories)
    flagged = named | openai_names(named)
    names = dict.fromkeys((*OPENAI, *guard.categories.values()))
    kinds = ["text", "image"] if has_images else ["text"]
    return {
        "flagged": made.is_unsafe,
        "categories": {name: name in flagged for name in names},
        "category_scores": {name: made.score if name in flagged else 0.0 for name in names},
        "category_applied_input_types": {name: kinds if name in flagged else [] for name in names},
        "unsafe_score": made.score,
    }
