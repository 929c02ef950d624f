"""Moderation in no API's words: conversations that a guard model judges, each by its last message."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from starlette.requests import Request as HttpRequest

from puna.core import PunaError
from puna.safety.llama_guard import Guard, is_guard, verdict
from puna.safety.verdict import Turn, Verdict
from puna.server.calls import Call, Choices
from puna.server.errors import bad, from_results, not_found
from puna.server.safety.guards import guard, guard_request
from puna.server.served import ServedModel
from puna.server.service import Service

_MOST = 128  # conversations of one request
_MOST_PICTURES = 32  # of all of them together: each is decoded anew


@dataclass(frozen=True, slots=True)
class Judged:
    call: Call
    guard: Guard
    verdicts: Sequence[Verdict]  # of the conversations in their order


def check_number(n: int, param: str) -> None:
    """Of what is to be judged: before anything of it is fetched. Raises ApiError."""
    if not 1 <= n <= _MOST:
        raise bad(param, f"{param} must have from 1 to {_MOST} of them, got {n:,}")


def _n_pictures(content: object) -> int:
    parts = content if isinstance(content, list) else []
    return sum(part.get("type") != "text" for part in parts if isinstance(part, dict))


async def judged(
    service: Service,
    http: HttpRequest,
    endpoint: str,
    model: str | None,
    conversations: Sequence[Sequence[Turn]],
    *,
    any_guard: Sequence[str],
    param: str,
) -> Judged:
    """What a guard says of each conversation; `any_guard` are beginnings of names that ask for any there is.

    Raises ApiError.
    """
    check_number(len(conversations), param)
    for i, turns in enumerate(conversations):
        if not turns or not all(content for _, content in turns):
            raise bad(param, f"{param} must have something in each of them, but nothing is in number {i + 1}")
    n_pictures = sum(_n_pictures(content) for turns in conversations for _, content in turns)
    if n_pictures > _MOST_PICTURES:
        raise bad(
            param,
            f"{param} must have at most {_MOST_PICTURES} pictures in all that is judged, got {n_pictures}: "
            "each message is judged with those before it",
        )

    def make(served: ServedModel) -> list[Choices]:
        return [[guard_request(served, turns)] for turns in conversations]

    name = await _guard_name(service, model, tuple(any_guard))
    call = await service.begin(http, endpoint, name, make, is_slow=True, param=param, is_verdict=True)
    asked = guard(call.served)
    answers = await call.answers(http)
    try:
        return Judged(call, asked, [verdict(asked, answer.text, answer.logprobs) for answer in answers])
    except PunaError as error:
        raise from_results(error) from None


async def _guard_name(service: Service, asked: str | None, any_guard: tuple[str, ...]) -> str:
    """The model that is asked for, or the first that is a guard. Raises ApiError."""
    names = [card.name for card in service.models.cards()]
    if asked is not None and (asked in names or not asked.startswith(any_guard)):
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
