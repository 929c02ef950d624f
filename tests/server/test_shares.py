"""Priorities of keys and parts of tenants, as clients of a busy server see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from time import sleep
from typing import Any

import pytest
from openai import OpenAI, PermissionDeniedError
from server.conftest import Running, Start, open_accounts

from puna import LLM
from puna.core import Batch
from puna.server.config import ServerConfig
from puna.server.tenants.accounts import Accounts
from puna.server.tenants.limits import Limits

N_FLOOD, N_EACH, N_TOKENS = 12, 16, 60  # requests, choices of each, tokens of each
MOST_RUNNING = 64  # by default


class Shop:
    def __init__(self, running: Running, accounts: Accounts) -> None:
        self.running = running
        self.accounts = accounts

    def client(self, tenant: str, priority: int = 0) -> OpenAI:
        secret = self.accounts.keys.create("test", tenant, limits=Limits(priority=priority))[1]
        return OpenAI(base_url=f"{self.running.url}/v1", api_key=secret, max_retries=0, timeout=60)


def ask(client: OpenAI, **changes: Any) -> Any:
    options: dict[str, Any] = {"max_tokens": 4, "temperature": 0, "extra_body": {"ignore_eos": True}}
    messages: Any = [{"role": "user", "content": "Hello"}]
    return client.chat.completions.create(model="tiny", messages=messages, **options | changes)


@pytest.fixture(scope="module")
def shop(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    accounts = open_accounts(tmp_path_factory.mktemp("ledger"), requires_keys=True)
    return Shop(start(ServerConfig(port=0), accounts), accounts)


@contextmanager
def flooded(shop: Shop, client: OpenAI, asked_last: Callable[[], Any], **changes: Any) -> Iterator[Any]:
    """One client asks for three times what fits, then somebody else for something small: its answer. All
    wait in the queue before the first step of them runs, and all are answered in the end.

    The answer must not have waited for the flood: behind it, all that waited would have been made first.
    """
    with ThreadPoolExecutor(N_FLOOD + 1) as pool, held(shop.running.llm) as let_go:
        futures = [
            pool.submit(ask, client, n=N_EACH, max_tokens=N_TOKENS, seed=i, **changes) for i in range(N_FLOOD)
        ]
        wait_for(shop, N_FLOOD * N_EACH)
        last = pool.submit(asked_last)
        wait_for(shop, N_FLOOD * N_EACH + 1)
        n_before = shop.running.llm.stats()
        let_go()
        answer = last.result()
        n_made = shop.running.llm.stats().generated_tokens - n_before.generated_tokens
        assert n_made < (N_FLOOD * N_EACH - MOST_RUNNING) * N_TOKENS / 2
        answers = [future.result() for future in futures]
    assert all(len(answer.choices) == N_EACH for answer in answers)
    assert all(answer.usage.completion_tokens == N_EACH * N_TOKENS for answer in answers)
    yield answer, answers


@contextmanager
def held(llm: LLM) -> Iterator[Callable[[], None]]:
    """The engine stands still before its next step."""
    gate, executor = Event(), llm._engine._engine._executor
    with pytest.MonkeyPatch.context() as patch:
        run = executor.step

        def step(batch: Batch) -> Any:
            assert gate.wait(30)
            return run(batch)

        patch.setattr(executor, "step", step)
        yield gate.set


def wait_for(shop: Shop, n_requests: int) -> None:
    for _ in range(3000):
        stats = shop.running.llm.stats()
        if stats.running + stats.waiting == n_requests:
            return
        sleep(0.01)
    raise AssertionError(f"{stats} instead of {n_requests} requests")


def test_another_tenant_does_not_wait_for_a_flood(shop: Shop) -> None:
    small = shop.client("small")
    alone = ask(small)
    with flooded(shop, shop.client("flood"), lambda: ask(small)) as (answer, _):
        assert answer.choices[0].message.content == alone.choices[0].message.content


def test_a_key_of_higher_priority_goes_first(shop: Shop) -> None:
    urgent = shop.client("one", priority=3)
    ask(urgent)
    with flooded(shop, shop.client("one"), lambda: ask(urgent, service_tier="priority")) as (answer, _):
        assert answer.service_tier == "priority"


def test_flexible_work_lets_the_rest_of_its_tenant_go_first(shop: Shop) -> None:
    client = shop.client("one")
    with flooded(shop, client, lambda: ask(client), service_tier="flex") as (answer, others):
        assert answer.service_tier == "default"
        assert {other.service_tier for other in others} == {"flex"}


def test_only_a_key_with_a_priority_may_ask_for_it(shop: Shop) -> None:
    for priority in (0, -5):
        with pytest.raises(PermissionDeniedError, match="needs a key with a priority above 0") as refused:
            ask(shop.client("one", priority), service_tier="priority")
        assert refused.value.code == "service_tier_not_allowed"
    urgent = shop.client("one", 3)
    found = {tier: ask(urgent, service_tier=tier).service_tier for tier in ("auto", "default", "flex")}
    assert found == {"auto": "priority", "default": "default", "flex": "flex"}
    chunks = list(ask(urgent, service_tier="flex", stream=True))
    assert {chunk.service_tier for chunk in chunks} == {"flex"}
