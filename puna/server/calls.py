"""One request for tokens, from admission to its account.

The order matters to whoever pays: a call is admitted (key, limits, room), its answer is made, its row is
durable in the ledger, and only then its last bytes go out. So an answer that a client has seen whole is in
the ledger, whatever happens to the server, and a call that was cut off is there with what was made of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from starlette.requests import Request as HttpRequest

from puna.core import PunaError, Request, SamplingParams
from puna.server.batches.inside import BatchLine
from puna.server.errors import ApiError, from_results, too_long, unavailable
from puna.server.generation import Generation, Piece, Whole, merged
from puna.server.safety.screen import Screen
from puna.server.served import ModelUse, ServedModel
from puna.server.sse import when_gone
from puna.server.tenants.accounts import Account
from puna.server.tenants.limits import Lease
from puna.server.tenants.usage import Usage
from puna.server.tiers import Tier, tier_of

if TYPE_CHECKING:
    from puna.server.service import Service

Tools = Sequence[str | Mapping[str, Any]]
Choices = Sequence[Request]  # the answers to one prompt that were asked for


def check_length(model: ServedModel, request: Request, param: str) -> None:
    """Raise ApiError where prompt and answer cannot both be held: nothing is cut short unasked."""
    n_prompt, n_max = len(request.prompt), request.params.max_tokens
    room = min(model.context, model.cache_tokens)
    if n_prompt > room:
        raise too_long(
            f"the prompt has {n_prompt} tokens, but the context of this model holds {room}; "
            "shorten the prompt",
            param,
        )
    if n_max is not None and n_prompt + n_max > room:
        raise too_long(
            f"the prompt has {n_prompt} tokens and the answer may have {n_max}, together {n_prompt + n_max}, "
            f"but the context of this model holds {room}; shorten the prompt or ask for at most "
            f"{max(0, room - n_prompt)} tokens",
            "max_tokens",
        )


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of a call: in the queue, computing its prompts, and from the first token to the last."""

    total_s: float
    queue_s: float
    prefill_s: float
    decode_s: float


class Call:
    """One request of a client that is being answered."""

    def __init__(
        self,
        service: Service,
        endpoint: str,
        account: Account,
        use: ModelUse,
        priority: int = 0,
        line: BatchLine | None = None,
    ) -> None:
        self.id = uuid4().hex if line is None else line.request_id
        self.created = int(datetime.now(UTC).timestamp())
        self.endpoint = endpoint
        self.account = account
        self.priority = priority
        self.model = use.name
        self.served = use.model
        self.generations: list[Generation] = []  # all choices of the first prompt, then of the next
        self.is_started = False
        self.is_cancelled = False
        self.trace_headers: Mapping[str, str] = {}
        self.began_at = perf_counter()
        self.load_s = 0.0  # that it waited for its model
        self.cache_salt = ""
        self.screen: Screen | None = None  # its safety checks, if there are any
        self._prompts: list[list[Generation]] = []
        self._service = service
        self._use = use
        self._line = line
        self._lease: Lease | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_settled = False
        self._is_late = False
        service.calls.add(self)

    def start(self, prompts: Sequence[Choices], tools: Tools | None, parallel: bool) -> None:
        """Take what the key's limits allow and hand the requests to the engine. Raises ApiError 503 where the
        call was cancelled before, RateLimited, and what submit() raises.
        """
        if self.is_cancelled:
            raise _cut_off()
        n_prompt = sum(len(requests[0].prompt) for requests in prompts)
        n_answers = sum(self._most_tokens(request) for requests in prompts for request in requests)
        self._lease = self.account.admit(n_prompt, n_answers)
        keeps_text = self._service.config.keeps_text
        for requests in prompts:
            self._prompts.append([])
            for i, request in enumerate(requests):
                request.priority, request.tenant = self.priority, self.account.tenant
                request.cache_salt = self.cache_salt
                if self._line is not None:
                    request.params = self._line.seeded(request.params, i)
                generation = Generation(
                    self.served.submit(request), tools, keeps_text=keeps_text, parallel=parallel
                )
                self._prompts[-1].append(generation)
                self.generations.append(generation)
        self.is_started = True
        config = self._service.config
        self._timer = asyncio.get_running_loop().call_later(config.timeout, self._expire)

    def _most_tokens(self, request: Request) -> int:
        if request.pooling is not None:
            return 0
        n_max = request.params.max_tokens
        return self.served.context - len(request.prompt) if n_max is None else n_max

    @property
    def tier(self) -> Tier:
        """The service tier that it is served in."""
        return tier_of(self.priority)

    @property
    def headers(self) -> dict[str, str]:
        return {"x-request-id": self.id, **self.account.headers()}

    @property
    def prompts(self) -> list[Sequence[int]]:
        """Token ids of all prompts."""
        return [choices[0].request.prompt for choices in self._prompts]

    def text_of(self, prompt: Sequence[int]) -> str:
        """A prompt as text; placeholders of images have none."""
        n_words = self.served.config.vocab_size
        return self.served.tokenizer.decode([token for token in prompt if token < n_words])

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
        """Stop within a step; what was made so far is still counted. One that has not begun never will."""
        self.is_cancelled = True
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
        made = merged(self.generations)
        try:
            async with aclosing(made if self.screen is None else self.screen.watch(made)) as pieces:
                async for piece in pieces:
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
        if any(end.finish == "cancelled" for end in ends):
            cut = _cut_off()
            if self._service.is_draining:
                await self.settle("cancelled", cut)
            else:  # nobody reads it, and it is no failure of the server
                cut.is_counted = True
                await self.settle("cancelled")
            raise cut
        await self.settle("ok")

    async def answers(self, http: HttpRequest) -> list[Whole]:
        """Wait for all choices; they are cancelled if the client goes away."""
        watch = asyncio.create_task(when_gone(http.receive, self.cancel))
        try:
            found = [Whole() for _ in self.generations]
            async for piece in self.pieces():
                found[piece.choice].add(piece)
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
            if self._line is None or status != "cancelled":
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

    def timing(self) -> Timing:
        """How long what has been done so far took."""
        first = min((g.first_at for g in self.generations if g.first_at is not None), default=None)
        last = max((g.last_at for g in self.generations if g.last_at is not None), default=None)
        admitted = min((g.admitted_at for g in self.generations if g.admitted_at is not None), default=None)
        now = perf_counter()
        return Timing(
            total_s=now - self.began_at,
            queue_s=(admitted or now) - self.began_at,
            prefill_s=(first or now) - admitted if admitted else 0.0,
            decode_s=last - first if first and last else 0.0,
        )

    def _usage(self, status: str) -> Usage:
        timing = self.timing()
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
            queue_s=timing.queue_s,
            prefill_s=timing.prefill_s,
            decode_s=timing.decode_s,
            status=status,
            finish_reason=",".join(finishes),
            audit=None if self.screen is None else self.screen.audit(status),
        )


def _cut_off() -> ApiError:
    return unavailable("the server shut down before the answer was whole; ask again", 5)


def choices(request: Request, n: int, make: Callable[[SamplingParams], Request]) -> list[Request]:
    """`request` and n - 1 more with the same prompt; with a seed, choice i has seed + i."""
    params, found = request.params, [request]
    for i in range(1, n):
        made = make(replace(params, seed=None if params.seed is None else params.seed + i))
        made.images = request.images  # as they are large, once for all
        found.append(made)
    return found
