"""Pages of other sites: what the browser of somebody who runs a server may be made to send to it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from server.conftest import Running, Start, open_accounts

from puna.server.config import ServerConfig

EVIL = "https://evil.example"
CHAT: dict[str, Any] = {
    "model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1,
}  # fmt: skip


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "x@[::1]"])
def test_a_name_that_is_rebound_to_this_machine_is_refused(server: Running, host: str) -> None:
    """Its pages could read every answer: the browser takes them for pages of this server."""
    for method, path in (
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/api/pull"),
        ("DELETE", "/api/delete"),
        ("GET", "/"),
        ("GET", "/metrics"),
        ("POST", "/v1/files"),
    ):
        answer = httpx.request(method, server.url + path, headers={"host": host}, json=CHAT)
        assert answer.status_code == 403, (path, answer.text)
        assert "foreign_page" in answer.text or "is not called" in answer.text  # each in its API's shape


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:8", "a.localhost"])
def test_own_names_are_answered(server: Running, host: str) -> None:
    answer = httpx.post(f"{server.url}/v1/chat/completions", headers={"host": host}, json=CHAT)
    assert answer.status_code == 200


def test_other_sites_send_nothing(server: Running) -> None:
    """What a form, or fetch() without a preflight, can send: no body, text, or a form with a file."""
    for origin in (EVIL, "null", "http://127.0.0.1:1", "chrome-extension://x"):
        headers = {"origin": origin}
        for answer in (
            httpx.post(f"{server.url}/v1/batches/batch_1/cancel", headers=headers),
            httpx.post(
                f"{server.url}/v1/files", headers=headers, data={"purpose": "batch"}, files={"file": b"x"}
            ),
            httpx.post(f"{server.url}/v1/chat/completions", headers=headers, json=CHAT),
        ):
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers
    for kind in ({"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}, {}):
        answer = httpx.post(f"{server.url}/v1/chat/completions", headers=kind, content=b'{"model": "tiny"}')
        assert answer.status_code == 400


def test_its_own_page_and_allowed_origins_may(start: Start) -> None:
    server = start(ServerConfig(port=0, cors_origin=("https://app.example",), server_name=("gpu.lan",)))
    url = f"{server.url}/v1/chat/completions"
    for headers in (
        {"origin": server.url},
        {"origin": "https://app.example"},
        {"origin": "http://gpu.lan:8000", "host": "gpu.lan:8000"},
        {"host": "gpu.lan"},
    ):
        assert httpx.post(url, headers=headers, json=CHAT).status_code == 200
    asks = {"origin": "https://app.example", "access-control-request-method": "POST"}
    assert httpx.options(url, headers=asks).headers["access-control-allow-origin"] == "https://app.example"
    refused = httpx.options(url, headers={**asks, "origin": EVIL})
    assert "access-control-allow-origin" not in refused.headers
    assert httpx.post(url, headers={"origin": EVIL}, json=CHAT).status_code == 403


def test_with_keys_a_page_has_none(start: Start, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Behind a proxy the name is the proxy's: a key decides, and no browser sends one by itself."""
    accounts = open_accounts(tmp_path_factory.mktemp("keys"), requires_keys=True)
    key = accounts.keys.create("a", "a")[1]
    server = start(ServerConfig(port=0), accounts)
    url = f"{server.url}/v1/chat/completions"
    own = {"host": "llm.example.org", "authorization": f"Bearer {key}"}
    assert httpx.post(url, headers=own, json=CHAT).status_code == 200
    assert httpx.post(url, headers={"origin": EVIL}, json=CHAT).status_code == 401
    admin = accounts.keys.create("b", "b", scopes=("admin",))[1]
    signed_in = httpx.post(f"{server.url}/sign-in", data={"key": admin})
    cookie = signed_in.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    # the cookie is good for the page alone
    for path in ("/admin/usage", "/admin/keys", "/metrics", "/v1/models"):
        assert httpx.get(server.url + path, cookies=signed_in.cookies).status_code == 401


def test_no_answer_is_a_page_of_somebody_else(server: Running) -> None:
    """Nothing that a client has sent comes back as HTML."""
    script = "<script>alert(1)</script>"
    for answer in (
        httpx.get(f"{server.url}/{script}"),
        httpx.get(f"{server.url}/v1/models/{script}"),
        httpx.get(f"{server.url}/page/{script}"),
        server.post("/v1/chat/completions", {**CHAT, "model": script}),
        server.post("/api/show", {"model": script}),
    ):
        assert answer.status_code in (403, 404)
        assert answer.headers["content-type"].startswith("application/json")
    page = httpx.get(server.url)
    assert script not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
