"""Keys, limits and the ledger as clients see them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

import httpx
import pytest
from server.conftest import Running, Start, open_accounts

from puna.server.config import ServerConfig
from puna.server.tenants.accounts import Accounts
from puna.server.tenants.limits import Limits
from puna.server.tenants.prices import Price, PriceList
from puna.server.tenants.queries import page

CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 5,
    "temperature": 0,
    "ignore_eos": True,
}
# 2 dollars for a million tokens of prompts and 8 of answers
PRICES = PriceList((Price("*", 2_000_000_000, 2_000_000_000, 8_000_000_000, date.min),))


@dataclass
class Shop:
    running: Running
    accounts: Accounts

    def ask(self, key: str | None, path: str = "/v1/chat/completions", **changes: Any) -> httpx.Response:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.post(self.running.url + path, json={**CHAT, **changes}, headers=headers, timeout=60)

    def get(self, key: str | None, path: str) -> httpx.Response:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.get(self.running.url + path, headers=headers, timeout=60)

    def key(self, **limits: Any) -> str:
        return self.accounts.keys.create("test", "acme", limits=Limits(**limits))[1]


@pytest.fixture(scope="module")
def shop(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    accounts = open_accounts(tmp_path_factory.mktemp("ledger"), PRICES, requires_keys=True)
    return Shop(start(ServerConfig(port=0), accounts), accounts)


def test_nobody_comes_in_without_a_key(shop: Shop) -> None:
    for key in (None, "puna-wrong"):
        for answer in (shop.ask(key), shop.get(key, "/v1/models"), shop.get(key, "/admin/usage")):
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
    key = shop.key()
    assert shop.ask(key).status_code == 200
    assert shop.get(key, "/admin/usage").status_code == 403
    found = next(k for k in shop.accounts.keys.list() if key.startswith(k.prefix))
    shop.accounts.keys.revoke(found.id)
    assert shop.ask(key).status_code == 401


def test_every_answer_has_a_row(shop: Shop) -> None:
    key = shop.key()
    answer = shop.ask(key)
    request_id = answer.headers["x-request-id"]
    usage = answer.json()["usage"]
    rows = {row.request_id: row for row in page(shop.accounts.database)}
    row = rows[request_id]
    assert (row.tenant, row.model, row.status) == ("acme", "tiny", "ok")
    assert (row.prompt_tokens, row.output_tokens) == (usage["prompt_tokens"], 5)
    assert row.cost_nano == 2000 * row.prompt_tokens + 8000 * 5
    stream = shop.ask(key, stream=True)
    rows = {row.request_id: row for row in page(shop.accounts.database)}
    assert rows[stream.headers["x-request-id"]].output_tokens == 5


def test_limits_are_told_with_the_time_to_wait(shop: Shop) -> None:
    key = shop.key(requests_per_minute=1)
    first = shop.ask(key)
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    refused = shop.ask(key)
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    greedy = shop.ask(shop.key(tokens_per_minute=10))
    assert greedy.status_code == 429
    assert "limit of this key is 10" in greedy.json()["error"]["message"]
    elsewhere = shop.ask(shop.key(models=("other",)))
    assert elsewhere.status_code == 403
    assert not shop.running.service.calls


def test_the_operator_reads_the_ledger(shop: Shop) -> None:
    shop.ask(shop.key())
    admin = shop.accounts.keys.create("root", "house", scopes=("inference", "admin"))[1]
    data = shop.get(admin, "/admin/usage?by=tenant").json()["data"]
    assert [row["group"] for row in data] == [["acme"]]
    lines = shop.get(admin, "/admin/usage.csv").text.splitlines()
    assert len(lines) == 1 + data[0]["requests"]
    keys = shop.get(admin, "/admin/keys")
    assert "root" in [key["name"] for key in keys.json()["data"]]
    assert admin not in keys.text
    assert shop.get(admin, "/admin/usage?since=soon").status_code == 400
