"""One request for tokens, from admission to its account.

The order matters to whoever pays: a call is admitted (key, limits, room), its answer is made, its row is
durable in the ledger, and only then its last bytes go out. So an answer that a client has seen whole is in
the ledger, whatever happens to the server, and a call that was cut off is there with what was made of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from time import perf_counter
from typing import Any
from uuid import uuid4

from starlette.requests import HTTPConnection
from starlette.requests import Request as HttpRequest

from puna.core import PunaError, Request, SamplingParams
from puna.server.config import ServerConfig
from puna.server.errors import ApiError, Dialects, from_puna, from_results, unavailable
from puna.server.figures import Figures
from puna.server.generation import Generation, Piece, Whole, merged
from puna.server.metrics import Metrics
from puna.server.rates import Rates
from puna.server.served import Models, ModelUse, ServedModel
from puna.server.sse import when_gone
from puna.server.tenants.accounts import Account, Accounts
from puna.server.tenants.limits import Lease
from puna.server.tenants.usage import Usage
from puna.server.traces import HEADERS, open_traces
from puna.server.watch import Watch

Tools = Sequence[str | Mapping[str, Any]]
Choices = Sequence[Request]  # the answers to one prompt that were asked for

LARGE = 20_000  # characters that take longer to encode than others should wait


class Service:
    """What the routes share: models, accounts, metrics, and the calls in flight."""

    def __init__(self, config: ServerConfig, models: Models, accounts: Accounts) -> None:
        self.config = config
        self.models = models
        self.accounts = accounts
        self.metrics = Metrics()
        self.watch = Watch(self)
        self.rates = Rates(models)
        self.dialects = Dialects()
        self.calls: set[Call] = set()
        self.is_draining = False
        self.metrics.add(Figures(self))
        self.traces = open_traces(config.otel_endpoint)

    def authenticate(self, http: HTTPConnection, scope: str = "inference") -> Account:
        """Whose request this is. Raises ApiError 401 or 403."""
        account = self.accounts.authenticate(_key_of(http), scope)
        http.state.account = account
        return account

    def check_room(self) -> None:
        """Raise ApiError 503 where another call would be one too many."""
        if self.is_draining:
            raise unavailable("the server is shutting down; try another one, or again in a moment", 5)
        if len(self.calls) >= self.config.max_requests:
            raise unavailable(
                f"the server takes {self.config.max_requests} requests at a time and has as many; "
                "try again in a moment",
                1,
            )
        self.accounts.check_writable()

    def check_operator(self, http: HTTPConnection) -> None:
        """Raise ApiError for strangers: where keys are required, what tells of tenants needs an admin's."""
        if self.accounts.requires_keys:
            self.authenticate(http, "admin")

    async def begin(
        self,
        http: HttpRequest,
        endpoint: str,
        model: str,
        make: Callable[[ServedModel], Sequence[Choices]],
        *,
        is_slow: bool = False,
        tools: Tools | None = None,
        param: str = "messages",
    ) -> Call:
        """Admit a call and start it; `make` turns it into requests of the engine, the choices of each prompt.

        `is_slow` says that `make` may take longer than others should wait. `param` is the field that is at
        fault where the prompt is. Raises ApiError.
        """
        account = self.authenticate(http)
        self.check_room()
        account.check_model(model)
        try:
            use = await self.models.use(model)
        except PunaError as error:
            raise from_puna(error, "model") from None
        call = Call(self, endpoint, account, use)
        # whoever passed the request on may have named it: sent twice, it has one row. One request can make
        # several calls, and only the first one gets the name.
        call.id = http.scope["state"].pop("request_id", call.id)
        call.trace_headers = {name: http.headers[name] for name in HEADERS if name in http.headers}
        try:
            prompts = await asyncio.to_thread(make, use.model) if is_slow else make(use.model)
            for requests in prompts:
                check_length(use.model, requests[0], param)
            call.start(prompts, tools)
        except PunaError as error:
            raise from_puna(error, param) from None
        finally:
            if not call.is_started:
                call.abandon()
        return call


def check_length(model: ServedModel, request: Request, param: str) -> None:
    """Raise ApiError where prompt and answer cannot both be held: nothing is cut short unasked."""
    n_prompt, n_max = len(request.prompt), request.params.max_tokens
    room = min(model.context, model.cache_tokens)
    if n_prompt > room:
        raise ApiError(
            400,
            f"the prompt has {n_prompt} tokens, but the context of this model holds {room}; "
            "shorten the prompt",
            param=param,
            code="context_length_exceeded",
        )
    if n_max is not None and n_prompt + n_max > room:
        raise ApiError(
            400,
            f"the prompt has {n_prompt} tokens and the answer may have {n_max}, together {n_prompt + n_max}, "
            f"but the context of this model holds {room}; shorten the prompt or ask for at most "
            f"{max(0, room - n_prompt)} tokens",
            param="max_tokens",
            code="context_length_exceeded",
        )


class Call:
    """One request of a client that is being answered."""

    def __init__(self, service: Service, endpoint: str, account: Account, use: ModelUse) -> None:
        self.id = uuid4().hex
        self.created = int(datetime.now(UTC).timestamp())
        self.endpoint = endpoint
        self.account = account
        self.model = use.name
        self.served = use.model
        self.generations: list[Generation] = []  # all choices of the first prompt, then of the next
        self.is_started = False
        self.trace_headers: Mapping[str, str] = {}
        self.began_at = perf_counter()
        self._prompts: list[list[Generation]] = []
        self._service = service
        self._use = use
        self._lease: Lease | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_settled = False
        self._is_late = False
        service.calls.add(self)

    def start(self, prompts: Sequence[Choices], tools: Tools | None) -> None:
        """Take what the key's limits allow and hand the requests to the engine."""
        n_prompt = sum(len(requests[0].prompt) for requests in prompts)
        n_answers = sum(self._most_tokens(request) for requests in prompts for request in requests)
        self._lease = self.account.admit(n_prompt, n_answers)
        keeps_text = self._service.config.keeps_text
        for requests in prompts:
            self._prompts.append([])
            for request in requests:
                generation = Generation(self.served.submit(request), tools, keeps_text=keeps_text)
                self._prompts[-1].append(generation)
                self.generations.append(generation)
        self.is_started = True
        config = self._service.config
        self._timer = asyncio.get_running_loop().call_later(config.timeout, self._expire)

    def _most_tokens(self, request: Request) -> int:
        n_max = request.params.max_tokens
        return self.served.context - len(request.prompt) if n_max is None else n_max

    @property
    def headers(self) -> dict[str, str]:
        return {"x-request-id": self.id, **self.account.headers()}

    @property
    def prompts(self) -> list[Sequence[int]]:
        """Token ids of all prompts."""
        return [choices[0].request.prompt for choices in self._prompts]

    @property
    def n_prompt(self) -> int:
        """Tokens of all prompts; the choices of one share it."""
        return sum(map(len, self.prompts))

    @property
    def n_cached(self) -> int:
        """Prompt tokens that were in the cache: of a prompt, as many as its luckiest choice found."""
        return sum(max(choice.n_cached for choice in choices) for choices in self._prompts)

    @property
    def n_output(self) -> int:
        return sum(generation.n_output for generation in self.generations)

    def cancel(self) -> None:
        """Stop within a step; what was made so far is still counted."""
        for generation in self.generations:
            generation.close()

    def abandon(self) -> None:
        """The call could not be started: nothing was made, nothing is counted."""
        self.cancel()
        self._release(0, 0)

    def _expire(self) -> None:
        self._is_late = True
        self.cancel()

    async def pieces(self) -> AsyncIterator[Piece]:
        """The answer as it comes; the ends of all choices come last, once the call is in the ledger.

        Raises ApiError where it broke off, which the ledger has as well.
        """
        ends: list[Piece] = []
        try:
            async for piece in merged(self.generations):
                if piece.finish is None:
                    yield piece
                    continue
                ends.append(Piece(finish=piece.finish, stop=piece.stop, choice=piece.choice))
                if piece.text or piece.calls or piece.logprobs:
                    yield replace(piece, finish=None)
            await self._end(ends)
        except PunaError as error:
            self.cancel()
            failed = from_results(error)
            await self.settle("error", failed)
            raise failed from error
        finally:
            if not self._is_settled:  # nobody reads it any more
                self.cancel()
                await asyncio.shield(self.settle("cancelled"))
        for end in sorted(ends, key=lambda end: end.choice):
            yield end

    async def _end(self, ends: Sequence[Piece]) -> None:
        if self._is_late:
            late = ApiError(
                504,
                f"the request took more than the {self._service.config.timeout:g} seconds that it may take, "
                f"{self.n_output} tokens were made; ask for fewer, or again when the server is less busy",
                kind="server_error",
                code="timeout",
            )
            await self.settle("error", late)
            raise late
        if any(end.finish == "cancelled" for end in ends):  # the client is gone, or the server has to go
            cut = unavailable("the server shut down before the answer was whole; ask again", 5)
            await self.settle("cancelled", cut)
            raise cut
        await self.settle("ok")

    async def answers(self, http: HttpRequest) -> list[Whole]:
        """Wait for all choices; they are cancelled if the client goes away."""
        watch = asyncio.create_task(when_gone(http.receive, self.cancel))
        try:
            found = [Whole() for _ in self.generations]
            texts: list[list[str]] = [[] for _ in self.generations]
            async for piece in self.pieces():
                answer = found[piece.choice]
                texts[piece.choice].append(piece.text)
                answer.calls += piece.calls
                answer.logprobs += piece.logprobs
                if piece.finish is not None:
                    answer.finish, answer.stop = piece.finish, piece.stop
            for answer, pieces in zip(found, texts, strict=True):
                answer.text = "".join(pieces)
            return found
        finally:
            watch.cancel()

    async def settle(self, status: str, error: ApiError | None = None) -> None:
        """Account for the call, once; raises ApiError 503 where that is impossible. `error` is its answer."""
        if self._is_settled:
            return
        self._is_settled = True
        accounts = self._service.accounts
        usage = accounts.priced(self._usage(status))
        self._release(usage.prompt_tokens - usage.cached_tokens, usage.output_tokens)
        self._service.metrics.count(usage, self.generations)
        try:
            await accounts.record(usage)
        except ApiError as failed:
            error = failed
            raise
        finally:
            self._service.watch.ended(self, usage, error)

    def _release(self, n_prompt: int, n_output: int) -> None:
        """Give back room, model and what the answer did not use of the limits."""
        self._is_settled = True
        self._service.calls.discard(self)
        self._use.__exit__(None, None, None)
        if self._timer is not None:
            self._timer.cancel()
        if self._lease is not None:
            self._lease.settle(n_prompt, n_output)

    def _usage(self, status: str) -> Usage:
        first = min((g.first_at for g in self.generations if g.first_at is not None), default=None)
        last = max((g.last_at for g in self.generations if g.last_at is not None), default=None)
        admitted = min((g.admitted_at for g in self.generations if g.admitted_at is not None), default=None)
        now = perf_counter()
        finishes = sorted({g.finish or "none" for g in self.generations})
        return Usage(
            request_id=self.id,
            created_at=datetime.fromtimestamp(self.created, UTC),
            key_id=self.account.key_id,
            tenant=self.account.tenant,
            model=self.model,
            endpoint=self.endpoint,
            prompt_tokens=self.n_prompt,
            cached_tokens=self.n_cached,
            output_tokens=self.n_output,
            queue_s=(admitted or now) - self.began_at,
            prefill_s=(first or now) - admitted if admitted else 0.0,
            decode_s=last - first if first and last else 0.0,
            status=status,
            finish_reason=",".join(finishes),
        )


def choices(request: Request, n: int, make: Callable[[SamplingParams], Request]) -> list[Request]:
    """`request` and n - 1 more with the same prompt; with a seed, choice i has seed + i."""
    params = request.params
    seeds = [None if params.seed is None else params.seed + i for i in range(n)]
    return [request, *(make(replace(params, seed=seed)) for seed in seeds[1:])]


def _key_of(http: HTTPConnection) -> str | None:
    """The key of a request: `Authorization: Bearer`, or Anthropic's `x-api-key`."""
    scheme, _, key = http.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        return key.strip()
    return http.headers.get("x-api-key")
