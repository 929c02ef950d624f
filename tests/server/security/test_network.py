"""No request makes the server reach an address, or take a body or a head, that it should not."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from server.conftest import Running, Start

from puna.server import connection, fetch
from puna.server.config import ServerConfig
from puna.server.errors import ApiError
from puna.server.fetch import fetch_image, public_address

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
JSON = {"content-type": "application/json"}


@contextmanager
def listening() -> Iterator[tuple[int, list[bytes]]]:
    """A server of this machine that must not be reached: its port, and what reached it."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        is_over = threading.Event()

        def run() -> None:
            while not is_over.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    heard.append(connection.recv(4096))

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()[1], heard
        finally:
            is_over.set()
            thread.join()


DIFFERENT = ("/v1/chat/completions", "/api/chat")  # ways to read what names a picture


def image_bodies(url: str) -> list[tuple[str, dict[str, Any]]]:
    """Every place of every API that takes the address of a picture."""
    part = {"type": "image_url", "image_url": {"url": url}}
    user = {"role": "user", "content": [part]}
    source = {"type": "image", "source": {"type": "url", "url": url}}
    item = {"role": "user", "content": [{"type": "input_image", "image_url": url}]}
    return [
        ("/v1/chat/completions", {**CHAT, "messages": [user]}),
        ("/llama/v1/chat/completions", {"model": "tiny", "messages": [user]}),
        ("/v1/messages", {**CHAT, "messages": [{"role": "user", "content": [source]}]}),
        ("/v1/messages/count_tokens", {"model": "tiny", "messages": [{"role": "user", "content": [source]}]}),
        ("/v1/responses", {"model": "tiny", "input": [item]}),
        ("/v1/moderations", {"model": "tiny", "input": [part]}),
        ("/api/chat", {"model": "tiny", "messages": [{"role": "user", "content": "a", "images": [url]}]}),
        ("/api/generate", {"model": "tiny", "prompt": "a", "images": [url]}),
        ("/apply-template", {"model": "tiny", "messages": [user]}),
    ]


def test_no_api_reaches_an_address_of_a_request(seeing: Running) -> None:
    with listening() as (port, heard), httpx.Client(base_url=seeing.url, timeout=60) as client:
        first = f"http://127.0.0.1:{port}/x.png"
        asked = [(path, url, body) for url in (first, "/etc/passwd") for path, body in image_bodies(url)]
        for url in (
            f"http://localhost:{port}/x.png",
            f"http://2130706433:{port}/x.png",
            f"http://0x7f.1:{port}/x.png",
            f"http://[::ffff:127.0.0.1]:{port}/x.png",
            f"http://user@127.0.0.1:{port}/x.png",
            f"http://example.org@127.0.0.1:{port}/x.png",
            f"gopher://127.0.0.1:{port}/x",
            f"//127.0.0.1:{port}/x.png",
            f"http://127.0.0.1:{port}\\@example.org/x.png",
            "file:///etc/passwd",
            "http://[",
            "https://example.org\n/x.png",
            "http://\u2100.example/",
        ):
            asked += [(path, url, body) for path, body in image_bodies(url) if path in DIFFERENT]
        for path, url, body in asked:
            answer = client.post(path, json=body)
            assert answer.status_code in (400, 404), (path, url, answer.status_code, answer.text)
            assert "root:" not in answer.text
    assert not heard


@pytest.mark.parametrize(
    "host",
    [
        "2130706433", "0177.0.0.1", "0x7f000001", "127.1", "0", "::", "::1", "::127.0.0.1",
        "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
        "2002:a00:1::1", "2001:0:7f00:1::", "fe80::1", "fec0::1", "ff02::1", "fd00:ec2::254", "100.64.0.1",
        "169.254.169.254", "192.168.0.1", "172.16.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1",
        "255.255.255.255",
    ],
)  # fmt: skip
def test_no_spelling_of_a_private_address_is_public(host: str) -> None:
    with pytest.raises((ValueError, OSError)):
        asyncio.run(public_address(host, 80))


@pytest.mark.parametrize("host", ["93.184.215.14", "2606:2800:21f:cb07::1", "64:ff9b::5db8:d70e"])
def test_public_addresses_are(host: str) -> None:
    assert asyncio.run(public_address(host, 80)) == host


def test_a_name_of_which_one_address_is_private_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def resolve(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(0, 0, 0, "", (address, port)) for address in ("93.184.215.14", "10.0.0.7")]

    async def main() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve, raising=False)
        await fetch_image("http://pictures.example/x.png", ["pictures.example"], "messages[0]")

    with pytest.raises(ApiError, match=r"10\.0\.0\.7, which is not a public one"):
        asyncio.run(main())
    assert asked == ["pictures.example"]


def _fetched(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> list[tuple[str, int]]:
    """Fetch from a host that answers so; returns where it was connected to."""
    reached: list[tuple[str, int]] = []
    names = iter(["93.184.215.14", "127.0.0.1"])  # the second is what a rebinding name would say next

    async def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [(0, 0, 0, "", (next(names), port))]

    class Sink:
        def write(self, data: bytes) -> None: ...

        def close(self) -> None: ...

    async def connect(host: str, port: int, **_: Any) -> tuple[asyncio.StreamReader, Sink]:
        reached.append((host, port))
        reader = asyncio.StreamReader()
        reader.feed_data(answer)
        reader.feed_eof()
        return reader, Sink()

    async def main() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve, raising=False)
        monkeypatch.setattr(fetch.asyncio, "open_connection", connect)
        await fetch_image("http://pictures.example/x.png", ["pictures.example"], "messages[0]")

    asyncio.run(main())
    return reached


def test_what_was_checked_is_what_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = _fetched(monkeypatch, b"HTTP/1.1 200 OK\r\n\r\npixels")
    assert reached == [("93.184.215.14", 80)]


def test_redirects_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    for status in (301, 302, 307, 308):
        answer = f"HTTP/1.1 {status} Moved\r\nlocation: http://127.0.0.1/\r\n\r\n".encode()
        with pytest.raises(ApiError, match="for the image, not 200"):
            _fetched(monkeypatch, answer)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "./x.gguf", "file:///etc/passwd", "~/x", "x\0y"])
def test_no_model_name_is_a_path(server: Running, name: str) -> None:
    chat = {"messages": CHAT["messages"], "max_tokens": 1}
    for path, body in (
        ("/v1/chat/completions", {**chat, "model": name}),
        ("/v1/completions", {"prompt": "a", "model": name}),
        ("/v1/embeddings", {"input": "a", "model": name}),
        ("/v1/responses", {"input": "a", "model": name}),
        ("/v1/messages", {**chat, "model": name}),
        ("/llama/v1/chat/completions", {"messages": CHAT["messages"], "model": name}),
        ("/api/chat", {"messages": CHAT["messages"], "model": name}),
        ("/api/generate", {"prompt": "a", "model": name}),
        ("/api/embed", {"input": "a", "model": name}),
        ("/api/show", {"model": name}),
        ("/tokenize", {"prompt": "a", "model": name}),
        ("/score", {"prompt": "a", "model": name}),
    ):
        answer = server.post(path, body)
        assert answer.status_code == 404, (path, answer.text)
        assert "root:" not in answer.text
    assert httpx.get(f"{server.url}/v1/models/{httpx.QueryParams({'': name})}").status_code == 404


def raw(server: Running, sent: bytes, *, waits: float = 10) -> bytes:
    """What comes back for these bytes until the server closes."""
    host, port = server.url.removeprefix("http://").split(":")
    got = b""
    with socket.create_connection((host, int(port)), timeout=waits) as client:
        try:
            client.sendall(sent)
            while part := client.recv(65536):
                got += part
        except (ConnectionResetError, BrokenPipeError, TimeoutError):
            pass
    return got


POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
BODY = json.dumps(CHAT).encode()


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: %d\r\ncontent-length: %d\r\n" % (len(BODY), len(BODY) + 5),
        b"content-length: %d\r\ntransfer-encoding: chunked\r\n" % len(BODY),
        b"content-length: +%d\r\n" % len(BODY),
        b"content-length: %d, %d\r\n" % (len(BODY), len(BODY)),
        b"content-length : %d\r\n" % len(BODY),
        b"content-length: %d\r\nx-folded: a\r\n b: c\r\n" % len(BODY),
        b"transfer-encoding: xchunked\r\n",
        b"x-nul: a\0b\r\ncontent-length: %d\r\n" % len(BODY),
        b"x bad: y\r\ncontent-length: %d\r\n" % len(BODY),
    ],
)
def test_two_readings_of_a_head_are_none(server: Running, head: bytes) -> None:
    before = server.service.metrics.text()
    got = raw(server, POST + head + b"\r\n" + BODY)
    assert got.startswith(b"HTTP/1.1 400 "), got
    assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["message"]
    assert server.service.metrics.text().count(b"chat") == before.count(b"chat")


def test_heads_have_an_end(server: Running) -> None:
    flood = b"".join(b"x-%d: y\r\n" % i for i in range(300))
    long = b"x-long: " + b"a" * (connection.MOST_HEAD + 1)
    path = b"GET /" + b"a" * connection.MOST_HEAD + b" HTTP/1.1\r\nhost: localhost\r\n\r\n"
    for sent in (POST + flood + b"\r\n", POST + long + b"\r\n\r\n", POST + long, path):
        got = raw(server, sent)
        assert got.startswith(b"HTTP/1.1 431 "), got[:80]
        assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_large"


def test_whoever_sends_no_end_of_headers_is_told_to_go(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.1)
    server = start(ServerConfig(port=0))
    assert raw(server, POST).startswith(b"HTTP/1.1 408 ")
    assert raw(server, b"") == b""
    answered = httpx.post(f"{server.url}/v1/chat/completions", json=CHAT)  # longer than its head may take
    assert answered.status_code == 200


def test_trailers_are_no_headers(server: Running) -> None:
    chunked = b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)
    end = b"\r\nGET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    # one that would have been refused as a header
    got = raw(server, POST + chunked + b"origin: https://evil.example\r\n" + end)
    assert got.count(b"HTTP/1.1 200 ") == 2, got
    for flood in (b"x: " + b"a" * (1 << 20), b"".join(b"x-%d: y\r\n" % i for i in range(20_000))):
        got = raw(server, POST + chunked + flood + b"\r\n" + end)
        assert b'"status":"ok"' not in got  # the next request on the connection was not read


def test_a_client_that_asks_first_is_told_no_before_it_sends(start: Start) -> None:
    server = start(ServerConfig(port=0, max_body_mb=1))
    asks = POST + b"expect: 100-continue\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    assert raw(server, asks % (2 << 20)).startswith(b"HTTP/1.1 413 ")
    assert raw(server, asks % len(BODY) + BODY).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_bodies_are_not_unfolded(server: Running, encoding: str) -> None:
    bomb = gzip.compress(b" " * (10 << 20))
    headers = {**JSON, "content-encoding": encoding}
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=bomb, headers=headers)
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_encoding"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[" * 100_000, "nested so deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested so deeply"),
        (b'{"model": "tiny", "model": "other"}', "'model' twice"),
        (b'{"temperature": NaN}', "NaN"),
        (b'{"temperature": -Infinity}', "-Infinity"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "too many digits"),
        (BODY.decode().encode("utf-16"), "UTF-8"),
        (b'{"model": "\xed\xa0\x80"}', "UTF-8"),
        (b'{"model": "\xff"}', "UTF-8"),
        (b'\xef\xbb\xbf{"model": "tiny"}', "BOM"),
        (b"", "missing"),
        (b"{}{}", "Extra data"),
        (b'{"model": "a\nb"}', "control character"),
    ],
)
def test_json_that_can_be_read_in_two_ways_is_refused(server: Running, body: bytes, said: str) -> None:
    for path in ("/v1/chat/completions", "/v1/messages", "/api/chat", "/v1/responses", "/tokenize"):
        answer = httpx.post(server.url + path, content=body, headers=JSON)
        assert answer.status_code == 400, answer.text
        assert said in answer.text
        assert len(answer.content) < 1000


FORM = '{"type":"json_schema","json_schema":{"name":"a","schema":%s}}'
TOOL = '{"type":"function","function":{"name":"f","parameters":%s}}'


def test_deep_json_that_is_read_gets_a_sentence(server: Running) -> None:
    """What Python's own limit lets through must not overflow whoever reads it next."""
    for depth in (50, 200, 400, 800, 960):
        deep: Any = {}
        for _ in range(depth):
            deep = {"properties": {"a": deep}, "type": "object"}
        deep_json = json.dumps(deep) if depth < 300 else '{"a":' * depth + "1" + "}" * depth
        for path, field in (
            ("/v1/chat/completions", f'"max_tokens":1,"response_format":{FORM}'),
            ("/v1/chat/completions", f'"max_tokens":1,"tools":[{TOOL}]'),
            ("/v1/chat/completions", '"logit_bias":%s'),
            ("/api/chat", '"stream":false,"options":{"num_predict":1},"format":%s'),
        ):
            body = '{"model":"tiny","messages":[{"role":"user","content":"a"}],' + field % deep_json + "}"
            answer = httpx.post(server.url + path, content=body, headers=JSON, timeout=60)
            assert answer.status_code in (200, 400), (depth, field, answer.text[:300])
            assert len(answer.content) < 5000


def test_what_was_sent_is_not_sent_back(server: Running) -> None:
    """Errors name what was found, but not all of it."""
    long = "q" * 1_000_000
    for body in (
        {**CHAT, "model": long},
        {**CHAT, "messages": long},
        {**CHAT, long: 1},
        {**CHAT, "messages": [{"role": long, "content": "a"}]},
        {**CHAT, "tools": [{"type": "function", "function": {"name": long}}]},
        {**CHAT, "stop": [long] * 9},
        {**CHAT, "service_tier": long},
        {**CHAT, "response_format": {"type": long}},
        {**CHAT, "logit_bias": {long: 1}},
    ):
        answer = server.post("/v1/chat/completions", body)
        assert answer.status_code in (400, 404), answer.status_code
        assert len(answer.content) < 2000, (len(answer.content), next(iter(set(body) - set(CHAT)), ""))


def test_a_slow_body_has_an_end(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    from puna.server import guard

    monkeypatch.setattr(guard, "_BODY_S", 0.1)
    server = start(ServerConfig(port=0))
    got = raw(server, POST + b"content-length: %d\r\n\r\n" % len(BODY) + BODY[:10], waits=60)
    assert got.startswith(b"HTTP/1.1 408 "), got[:200]
