"""POST /v1/moderations, by a guard model that the server has."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any
from weakref import WeakKeyDictionary

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puna.core import PunaError, SamplingParams
from puna.safety.guard import Guard, Verdict, guard_of, is_guard, verdict
from puna.safety.taxonomy import OPENAI, openai_names
from puna.server.calls import Choices
from puna.server.errors import ApiError, bad, from_results, not_found
from puna.server.images import resolved
from puna.server.openai.fields import Body
from puna.server.openai.messages import ImagePart, TextPart
from puna.server.replies import dumps
from puna.server.served import ServedModel
from puna.server.service import Service
from puna.server.strict import Route
from puna.server.structured import compiled

_MOST = 128  # inputs of one request
_LONGEST = 200  # tokens of an answer: all codes there are
_OPENAIS = ("omni-moderation", "text-moderation")  # what its models are called: any guard will do

_guards: WeakKeyDictionary[ServedModel, Guard] = WeakKeyDictionary()

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
        inputs = body.inputs
        if not inputs or not all(inputs) or len(inputs) > _MOST:
            raise bad("input", f"input must be 1 to {_MOST} texts with something in them, got {len(inputs)}")
        host, turns = service.config.image_host, [{"role": "user", "content": item} for item in inputs]
        contents = [turn["content"] for turn in await resolved(host, turns)]

        def make(model: ServedModel) -> list[Choices]:
            return [_requests(model, content) for content in contents]

        name = await _guard_name(service, body.model)
        call = await service.begin(http, "moderations", name, make, is_slow=True, param="input")
        guard = _guard(call.served)
        answers = await call.answers(http)
        try:
            verdicts = [verdict(guard, answer.text, answer.logprobs) for answer in answers]
        except PunaError as error:
            raise from_results(error) from None
        has_images = not isinstance(inputs[0], str)
        found = {
            "id": f"modr-{call.id}",
            "model": call.model,
            "results": [_result(guard, made, has_images) for made in verdicts],
        }
        return Response(dumps(found), 200, call.headers, "application/json")

    return router


async def _guard_name(service: Service, asked: str | None) -> str:
    """The model that is asked for, or the first that is a guard. Raises ApiError."""
    names = [card.name for card in service.models.cards()]
    if asked is not None and not asked.startswith(_OPENAIS):
        if asked not in names or is_guard((await service.models.facts(asked)).template):
            return asked
        raise not_found(
            f"{asked} is no guard model, its chat template has no categories; ask a Llama Guard, such as "
            "llama-guard-3-8b",
            "model",
            "model_not_found",
        )
    for name in names:
        with suppress(PunaError):  # what cannot be read is none
            if is_guard((await service.models.facts(name)).template):
                return name
    raise not_found(
        "moderations need a guard model, this server has none; serve one with its chat template, such as "
        "llama-guard-3-8b, beside the others",
        "model",
        "model_not_found",
    )


def _guard(model: ServedModel) -> Guard:
    """Raises BadInput for a template that cannot be used."""
    found = _guards.get(model)
    if found is None:
        made = guard_of(model.tokenizer)
        if made is None:
            raise ApiError(404, "the model is no guard", param="model", code="model_not_found")
        found = _guards.setdefault(model, made)
    return found


def _requests(model: ServedModel, content: Any) -> Choices:
    guard = _guard(model)
    ids = tuple(sorted(guard.safe_ids | guard.unsafe_ids))
    params = SamplingParams(temperature=0, max_tokens=_LONGEST, logprobs=0, logprob_ids=ids)
    request = model.chat_request([guard.turn(content)], params)
    request.grammar = compiled(model, "regex", guard.pattern).start()
    return [request]


def _result(guard: Guard, made: Verdict, has_images: bool) -> dict[str, Any]:
    """OpenAI's categories, then the guard's own by their names. A score is the probability of "unsafe" for
    what was named, and 0 for all else; `unsafe_score` has it whatever was named."""
    named = {guard.categories[code] for code in made.codes}
    flagged = named | openai_names(named)
    names = dict.fromkeys((*OPENAI, *guard.categories.values()))
    kinds = ["text", "image"] if has_images else ["text"]
    return {
        "flagged": bool(made.codes),
        "categories": {name: name in flagged for name in names},
        "category_scores": {name: made.score if name in flagged else 0.0 for name in names},
        "category_applied_input_types": {name: kinds if name in flagged else [] for name in names},
        "unsafe_score": made.score,
    }
