"""POST /api/generate: one prompt, put to the model as a message, or as it is (raw, suffix)."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from puna.core import Request
from puna.server.calls import Call, Choices
from puna.server.errors import bad
from puna.server.generation import Piece, Whole
from puna.server.infill import infill
from puna.server.ollama import wire
from puna.server.ollama.fields import Asked, is_let_go, picture
from puna.server.ollama.models import loaded
from puna.server.served import ServedModel
from puna.server.service import Service


class GenerateRequest(Asked):
    prompt: str = ""
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[Annotated[int, Field(ge=0)]] | None = None
    raw: bool | None = None
    images: list[str] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the prompt goes to the model without its template."""
        return bool(self.raw or self.suffix)

    def check(self) -> None:
        super().check()
        if self.template:
            raise bad(
                "template",
                "a template of a request is not supported, prompts are built by the model's own; leave it "
                "out, or write the whole prompt with raw: true",
            )
        what = "raw" if self.raw else "suffix"
        for name in ("system", "context", "images"):
            if self.is_plain and getattr(self, name):
                raise bad(name, f"{name} and {what} cannot be had together; take one of them out")
        if self.raw and self.suffix:
            raise bad("suffix", "suffix and raw cannot be had together; take one of them out")
        if self.context and self.images:
            raise bad("images", "images and context cannot be had together; use /api/chat with all messages")

    @property
    def turns(self) -> list[dict[str, Any]]:
        content: Any = self.prompt
        if self.images:
            content = [*(picture("images", image) for image in self.images), _text(self.prompt)]
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": content}]

    def request(self, model: ServedModel) -> Request:
        """Raises BadInput and ApiError."""
        grammar, params = self.grammar_for(model), self.sampling(model.default_params)
        if self.suffix:
            made = infill(model, self.prompt, self.suffix, params)
        elif self.raw:
            made = model.text_request(self.prompt, params, special=True)
        else:
            made = model.chat_request(self.turns, params, after=self.context or ())
        if grammar is not None:
            made.grammar = grammar.start()
        return self.within_num_ctx(model, made)


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["Ollama"], route_class=wire.AnyType)

    @router.post("/api/generate", response_model=None)
    async def generate(body: GenerateRequest, http: HttpRequest) -> Response:
        """Answer a prompt, as lines of JSON or at once."""
        body.check()
        if not (body.prompt or body.suffix or body.images):
            found = await loaded(service, http, body)
            return JSONResponse(
                {**found, "response": ""},
                headers=wire.ignored(await http.json(), is_obeyed=is_let_go(body.keep_alive)),
            )
        call = await _begin(service, body, http)
        return await wire.answer(
            service,
            call,
            body,
            http,
            lambda piece: _said(body, call, piece),
            lambda whole: _said(body, call, whole),
            lambda: _context(body, call),
        )

    return router


async def _begin(service: Service, body: GenerateRequest, http: HttpRequest) -> Call:
    def make(model: ServedModel) -> list[Choices]:
        return [[body.request(model)]]

    return await service.begin(http, "api/generate", body.name, make, is_slow=True, param="prompt")


def _said(body: GenerateRequest, call: Call, piece: Piece | Whole) -> dict[str, Any]:
    return {"response": piece.text, **wire.with_logprobs(body, call, piece.logprobs)}


def _context(body: GenerateRequest, call: Call) -> dict[str, Any]:
    """All ids of the conversation, for a request that goes on with it."""
    if body.is_plain or body.images:
        return {}
    (generation,) = call.generations
    return {"context": [*generation.request.prompt, *generation.token_ids]}
