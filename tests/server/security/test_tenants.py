"""What one tenant can learn of another: not what was asked, and no key."""

from __future__ import annotations

import hmac
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from server.conftest import Running, Start, open_accounts

from puna.server.config import ServerConfig
from puna.server.tenants import keys as keys_module

TEXT = "the other day the other man said something " * 5
FIELDS = {"model": "tiny", "max_tokens": 1}
MESSAGES = [{"role": "user", "content": TEXT}]


@dataclass
class Shop:
    running: Running
    keys: dict[str, str]

    def post(self, who: str, path: str, **body: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.keys[who]}"}
        return httpx.post(f"{self.running.url}{path}", json=body, headers=headers, timeout=60)

    def cached(self, who: str, text: str = TEXT, **body: Any) -> int:
        found = self.post(who, "/v1/completions", **FIELDS, prompt=text, **body)
        assert found.status_code == 200, found.text
        n: int = found.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return n


def open_shop(start: Start, folder: Path, **config: Any) -> Shop:
    accounts = open_accounts(folder, requires_keys=True)
    made = {who: accounts.keys.create(who, who, scopes=("inference", "admin"))[1] for who in ("ann", "bob")}
    return Shop(start(ServerConfig(port=0, sessions=str(folder), **config), accounts), made)


@pytest.fixture(scope="module")
def shop(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return open_shop(start, tmp_path_factory.mktemp("shop"))


def test_nobody_learns_what_another_tenant_has_asked(shop: Shop) -> None:
    assert shop.cached("ann") == 0
    assert shop.cached("ann") >= 128
    assert shop.cached("bob") == 0
    assert shop.cached("bob") >= 128


@pytest.mark.parametrize(
    ("path", "body", "usage"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES}, ("prompt_tokens_details", "cached_tokens")),
        ("/v1/responses", {"input": TEXT}, ("input_tokens_details", "cached_tokens")),
        ("/v1/messages", {"messages": MESSAGES}, ("cache_read_input_tokens",)),
    ],
)
def test_in_every_api_that_says_so(
    shop: Shop, path: str, body: dict[str, Any], usage: tuple[str, ...]
) -> None:
    most = {"model": "tiny", "max_output_tokens" if path == "/v1/responses" else "max_tokens": 1}

    def cached(who: str) -> Any:
        found = shop.post(who, path, **most, **body).json()["usage"]
        for name in usage:
            found = found[name]
        return found

    own = {**body}
    for name in own:  # a text of this path's own
        own[name] = [{"role": "user", "content": path + TEXT}] if name == "messages" else path + TEXT
    body = own
    assert cached("ann") < 32  # the template's own beginning at most
    assert cached("ann") >= 128
    assert cached("bob") < 32


def test_a_salt_keeps_requests_of_one_tenant_apart(shop: Shop) -> None:
    text = "salted: " + TEXT
    assert shop.cached("ann", text, cache_salt="one") == 0
    assert shop.cached("ann", text, cache_salt="one") >= 128
    assert shop.cached("ann", text, cache_salt="two") == 0
    assert shop.cached("ann", text) == 0
    assert shop.cached("bob", text, cache_salt="one") == 0
    long = shop.post("ann", "/v1/completions", **FIELDS, prompt="a", cache_salt="x" * 257)
    assert long.status_code == 400
    assert long.json()["error"]["param"] == "cache_salt"


def test_an_operator_can_let_them_share(start: Start, tmp_path: Path) -> None:
    shop = open_shop(start, tmp_path, share_prefixes=True)
    assert shop.cached("ann") == 0
    assert shop.cached("bob") >= 128
    assert shop.cached("bob", cache_salt="own") == 0


def test_a_session_is_restored_for_one_tenant(shop: Shop) -> None:
    text = "session: " + TEXT
    assert shop.post("ann", "/admin/sessions/save", name="one", prompt=text).status_code == 200
    assert shop.cached("bob", text) == 0
    other = "of bob: " + TEXT
    assert shop.post("ann", "/admin/sessions/save", name="two", prompt=other, tenant="bob").status_code == 200
    assert shop.cached("bob", other) >= 128
    restored = shop.post("ann", "/admin/sessions/restore", name="two")
    assert restored.status_code == 200, restored.text
    assert shop.cached("ann", other) >= 128


def test_answers_are_the_same_whoever_asks(shop: Shop) -> None:
    text = "same: " + TEXT
    asked: dict[str, Any] = {"model": "tiny", "prompt": text, "max_tokens": 12, "logprobs": 2, "seed": 1}
    answers = [shop.post(who, "/v1/completions", **asked).json()["choices"] for who in ("ann", "ann", "bob")]
    assert answers[0] == answers[1] == answers[2]


def test_a_key_is_nowhere_but_with_its_owner(
    shop: Shop, caplog: pytest.LogCaptureFixture, tmp_path_factory: pytest.TempPathFactory
) -> None:
    url, key, wrong = shop.running.url, shop.keys["ann"], "puna-wrong-0123456789"
    seen = []
    with caplog.at_level(logging.DEBUG):
        for headers in (
            {"authorization": f"Bearer {key}"},
            {"authorization": f"Bearer {wrong}"},
            {"authorization": f"Basic {key}"},
            {"x-api-key": wrong},
        ):
            for path in ("/v1/models", "/metrics", "/", "/admin/keys", "/admin/usage", "/nowhere"):
                found = httpx.get(url + path, headers=headers)
                seen.append(found.text + str(found.headers))
            body = {"model": "nope", "messages": [{"role": "user", "content": "a"}]}
            seen.append(httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers).text)
        in_url = httpx.get(f"{url}/v1/models", params={"key": key, "api_key": key})
        assert in_url.status_code == 401  # a URL is no place for one
        seen.append(in_url.text)
        signed_in = httpx.post(f"{url}/sign-in", data={"key": key})
        assert signed_in.status_code == 303
        seen.append(str(signed_in.headers))
        seen.append(httpx.get(url, cookies=signed_in.cookies).text)
    ours = (record.getMessage() for record in caplog.records if not record.name.startswith("http"))
    text = "".join(seen) + "".join(ours)
    assert key not in text
    assert key[20:] not in text
    assert wrong not in text


def test_keys_are_compared_in_constant_time(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return hmac.compare_digest(a, b)

    class Spy:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(keys_module, "hmac", Spy)
    assert shop.post("ann", "/tokenize", prompt="a").status_code == 200
    assert compared
    assert {len(a) for pair in compared for a in pair} == {32}


STORED = [
    ("GET", "/v1/responses/{response}"), ("DELETE", "/v1/responses/{response}"),
    ("GET", "/v1/responses/{response}/input_items"), ("POST", "/v1/responses/{response}/cancel"),
    ("GET", "/v1/conversations/{conversation}"), ("DELETE", "/v1/conversations/{conversation}"),
    ("GET", "/v1/conversations/{conversation}/items"), ("GET", "/v1/files/{file}"),
    ("GET", "/v1/files/{file}/content"), ("DELETE", "/v1/files/{file}"), ("GET", "/v1/batches/{batch}"),
    ("POST", "/v1/batches/{batch}/cancel"),
]  # fmt: skip


def test_what_is_stored_is_its_tenants(shop: Shop) -> None:
    client, stranger = shop.running.openai(shop.keys["ann"]), shop.keys["bob"]
    line = b'{"custom_id":"1","method":"POST","url":"/v1/completions","body":{"model":"tiny","prompt":"a"}}'
    file = client.files.create(file=("a.jsonl", line), purpose="batch")
    ids = {
        "response": client.responses.create(model="tiny", input="a", max_output_tokens=1).id,
        "conversation": client.conversations.create().id,
        "file": file.id,
        "batch": client.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        ).id,
    }
    for method, path in STORED:
        url = shop.running.url + path.format(**ids)
        found = httpx.request(method, url, headers={"authorization": f"Bearer {stranger}"})
        nothing = httpx.request(
            method, shop.running.url + path.format(**dict.fromkeys(ids, "nothing")),
            headers={"authorization": f"Bearer {stranger}"},
        )  # fmt: skip
        assert found.status_code == nothing.status_code == 404, (path, found.text)  # not even that it exists
    for name, asked in (("response", "previous_response_id"), ("conversation", "conversation")):
        body = {"model": "tiny", "input": "a", asked: ids[name]}
        assert shop.post("bob", "/v1/responses", **body).status_code == 404
    assert client.files.retrieve(file.id).id == file.id
    assert client.responses.retrieve(ids["response"]).id == ids["response"]
