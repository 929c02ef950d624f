"""What the routes of a server share: models, accounts, figures, and how a request becomes a call."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from starlette.requests import HTTPConnection
from starlette.requests import Request as HttpRequest

from puna.core import PunaError
from puna.safety import classifiers
from puna.safety.policy import Policies, read_policies
from puna.server.batches.inside import line_of
from puna.server.calls import Call, Choices, Tools, check_length
from puna.server.config import ServerConfig
from puna.server.errors import Dialects, from_puna, unavailable
from puna.server.figures import Figures
from puna.server.metrics import Metrics
from puna.server.rates import Rates
from puna.server.safety.conversation import Conversation
from puna.server.safety.guards import Caller
from puna.server.safety.judges import Judges
from puna.server.safety.screen import Screen
from puna.server.served import Library, Models, ModelUse, ServedModel
from puna.server.sse import when_gone
from puna.server.storage.database import data_folder
from puna.server.storage.files import Files
from puna.server.tenants.accounts import Account, Accounts
from puna.server.tiers import FLEX, Asked, priority_of
from puna.server.traces import HEADERS, open_traces
from puna.server.watch import Watch

_T = TypeVar("_T")

N_PROMPTING = 4 + min(28, os.cpu_count() or 1)  # prompts that are made at a time
LARGE = 20_000  # characters that take longer to encode than others should wait


def files_folder(config: ServerConfig) -> Path:
    """Where files of clients are."""
    return Path(config.files_folder) if config.files_folder else data_folder() / "files"


class Service:
    """What the routes share: models, accounts, metrics, and the calls in flight."""

    def __init__(
        self, config: ServerConfig, models: Models, accounts: Accounts, library: Library | None = None
    ) -> None:
        self.config = config
        self.library = library  # None: nobody may change what is on this machine
        self.models = models
        self.accounts = accounts
        self.metrics = Metrics()
        self.watch = Watch(self)
        self.rates = Rates(models)
        policies = read_policies(Path(config.safety)) if config.safety else Policies({})
        self.judges = Judges(policies, models, classifiers.make, self.beside)
        self.dialects = Dialects()
        self.files = Files(
            accounts.database,
            files_folder(config),
            max_bytes=config.max_file_mb << 20,
            quota_bytes=config.file_quota_mb << 20,
            keep=timedelta(days=config.keep_stored_days),
        )
        # How long a prompt takes is up to whoever sends it (templates, pictures, grammars): what else is
        # done in threads, files and database, does not wait for it.
        self._prompting = ThreadPoolExecutor(N_PROMPTING, "prompt")
        self.calls: set[Call] = set()
        self.n_waiting = 0  # requests whose model is not in memory yet
        self.tasks: set[asyncio.Task[None]] = set()  # that go on without a client
        self.is_draining = False
        self._is_over = asyncio.Event()
        self.metrics.add(Figures(self))
        self.traces = open_traces(config.otel_endpoint)

    def authenticate(self, http: HTTPConnection, scope: str = "inference") -> Account:
        """Whose request this is. Raises ApiError 401 or 403."""
        if (line := line_of(http)) is not None:
            account = self.accounts.of_key(line.key_id)
        else:
            account = self.accounts.authenticate(_key_of(http), scope)
        http.state.account = account
        return account

    def check_known(self, http: HTTPConnection) -> None:
        """Raise ApiError 401 for strangers, before a body of theirs is read."""
        if line_of(http) is None:
            self.accounts.check_known(_key_of(http))

    def check_room(self) -> None:
        """Raise ApiError 503 where another call would be one too many."""
        if self.is_draining:
            raise unavailable("the server is shutting down; try another one, or again in a moment", 5)
        if self.n_in_flight >= self.config.max_requests:
            raise unavailable(
                f"the server takes {self.config.max_requests} requests at a time and has as many; "
                "try again in a moment",
                1,
            )
        self.accounts.check_writable()

    @property
    def n_in_flight(self) -> int:
        """Requests that have been admitted and are not answered yet."""
        return len(self.calls) + self.n_waiting

    @property
    def requires_keys(self) -> bool:
        return self.accounts.requires_keys

    def check_operator(self, http: HTTPConnection) -> None:
        """Raise ApiError for strangers: where keys are required, what tells of tenants needs an admin's."""
        if self.accounts.requires_keys:
            self.authenticate(http, "admin")

    def cache_salt(self, tenant: str, own: str = "") -> str:
        """Which cached prompts a call may find: those of `tenant`, and among them those with its own salt.

        From the time of an answer one could learn otherwise whether somebody else had asked the same. Without
        keys all are one tenant.
        """
        is_shared = self.config.share_prefixes or not self.accounts.requires_keys
        tenant = "" if is_shared else tenant
        return f"{tenant}\0{own}" if own else tenant  # no tenant's name has a NUL

    async def use(self, http: HttpRequest, name: str) -> ModelUse:
        """A model that stays in memory until the result is left, loaded first if need be.

        Raises ApiError: where there is no such model, it cannot be loaded, that takes longer than a request
        may, or the client has gone away meanwhile.
        """
        try:
            held = self.models.hold(name)
            if held is None:
                self.check_room()
                self.n_waiting += 1
                try:
                    held = await self._loaded(http, name)
                finally:
                    self.n_waiting -= 1
            return held
        except PunaError as error:
            raise from_puna(error, "model") from None

    async def _loaded(self, http: HttpRequest, name: str) -> ModelUse:
        loading = asyncio.ensure_future(self.models.use(name))
        gone = asyncio.ensure_future(when_gone(http.receive, lambda: None))
        over = asyncio.ensure_future(self._is_over.wait())
        timeout, is_ours = self.config.timeout, False
        try:
            await asyncio.wait({loading, gone, over}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                is_ours = True
                return loading.result()
            if over.done():
                raise unavailable("the server shut down before the model was loaded; ask again", 5)
            if gone.done():
                raise unavailable("the client went away while the model was being loaded", 1)
            raise unavailable(
                f"{name} is not in memory, and there was no room for it within the {timeout:g} seconds that "
                "a request may take; try again when the server is less busy",
                30,
            )
        finally:
            gone.cancel()
            over.cancel()
            if not is_ours:
                loading.cancel()
                loading.add_done_callback(_give_back)

    async def begin(
        self,
        http: HttpRequest,
        endpoint: str,
        model: str,
        make: Callable[[ServedModel], Sequence[Choices]],
        *,
        is_slow: bool = False,
        tools: Tools | None = None,
        parallel: bool = True,
        param: str = "messages",
        tier: Asked | None = None,
        cache_salt: str | None = None,
        conversations: Sequence[Conversation] | None = None,
        is_verdict: bool = False,
    ) -> Call:
        """Admit a call and start it; `make` turns it into requests of the engine, the choices of each prompt.

        `is_slow` says that `make` may take longer than others should wait, as a chat template may, which is
        somebody's program. Without `parallel`, answers end with their first call of one of the `tools`.
        `param` is the field that is at fault where the prompt is, `tier` how urgent the request calls itself,
        `cache_salt` what keeps its prompts apart from others of its tenant. Judges read the
        `conversations` in place of the prompts, and nothing of a call whose answers are verdicts.
        Raises ApiError.
        """
        account = self.authenticate(http)
        line = line_of(http)
        priority = priority_of(tier, account.priority)
        if line is not None:
            priority = min(priority, FLEX)  # nobody waits for it
        self.check_room()
        account.check_model(model)
        began_at = perf_counter()
        use = await self.use(http, model)
        call = Call(self, endpoint, account, use, priority, line)
        if self._is_over.is_set():
            call.cancel()
        # whoever passed the request on may have named it: sent twice, it has one row. One request can make
        # several calls, and only the first one gets the name.
        call.id = http.scope["state"].pop("request_id", call.id)
        call.cache_salt = self.cache_salt(account.tenant, cache_salt or "")
        call.load_s = call.began_at - began_at
        call.trace_headers = {name: http.headers[name] for name in HEADERS if name in http.headers}
        try:
            prompts = await self.beside(make, use.model) if is_slow else make(use.model)
            for requests in prompts:
                check_length(use.model, requests[0], param)
            if not is_verdict:
                call.screen = self._screen(call, prompts, conversations)
            call.start(prompts, tools, parallel)
        except PunaError as error:
            raise from_puna(error, param) from None
        finally:
            if not call.is_started:
                call.abandon()
        return call

    def _screen(
        self, call: Call, prompts: Sequence[Choices], conversations: Sequence[Conversation] | None
    ) -> Screen | None:
        """The safety checks of a call. Raises SafetyUnavailable."""
        policy = self.judges.policy(call.account.policy)
        if policy is None or not policy.judges:
            return None
        if conversations is None:
            conversations = [
                Conversation((("user", call.text_of(requests[0].prompt)),)) for requests in prompts
            ]
        caller = Caller(call.account.tenant, call.cache_salt, call.priority)
        prompt_of = [number for number, requests in enumerate(prompts) for _ in requests]
        tokenizer = call.served.tokenizer

        def spell(token: int) -> bytes:
            return b"" if token in tokenizer.special_ids else tokenizer.token_bytes(token)

        def block(number: int) -> None:
            call.generations[number].block()

        return self.judges.screen(policy, caller, conversations, prompt_of, block, spell)

    def cut_off(self) -> None:
        """Whatever is in flight ends now, with an error."""
        self._is_over.set()
        for call in list(self.calls):
            call.cancel()

    async def beside(self, make: Callable[..., _T], *args: Any) -> _T:
        """What `make` gives, done beside the event loop: for what prompts are made of."""
        return await asyncio.get_running_loop().run_in_executor(self._prompting, make, *args)

    def close(self) -> None:
        """Nothing more is asked."""
        self._prompting.shutdown(wait=False, cancel_futures=True)

    async def ask(
        self,
        http: HttpRequest,
        model: str,
        make: Callable[[ServedModel], _T],
        *,
        is_slow: bool = False,
        param: str = "messages",
    ) -> _T:
        """What `make` finds out of a model, for requests that generate nothing. Raises ApiError."""
        account = self.authenticate(http)
        account.check_model(model)
        with await self.use(http, model) as served:
            try:
                return await self.beside(make, served) if is_slow else make(served)
            except PunaError as error:
                raise from_puna(error, param) from None


def _give_back(loading: asyncio.Future[ModelUse]) -> None:
    """Nobody takes the model that was waited for."""
    if not loading.cancelled() and loading.exception() is None:
        loading.result().__exit__(None, None, None)


def _key_of(http: HTTPConnection) -> str | None:
    """The key of a request: `Authorization: Bearer`, or Anthropic's `x-api-key`."""
    scheme, _, key = http.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        return key.strip()
    return http.headers.get("x-api-key")
