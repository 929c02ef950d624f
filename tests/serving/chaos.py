"""Chaos for a bounded time: what hostile and unlucky clients do, with kills of the server in between.

Every client that reads an answer to its end notes its id; the ledger must have exactly one row for each,
whatever was killed when. Memory is compared between the first and the last life of a server that lived long
enough to be warm, and after each wave no request and no cache block may be held.
"""

from __future__ import annotations

import json
import random
import socket
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

import httpx
from serving.figure import Figure
from serving.process import Served, start

_CLIENTS = 12
_ASKED = [{"role": "user", "content": "Tell me about the high grassland where llamas live."}]


@dataclass
class Seen:
    """What clients were told, over all lives of the server."""

    whole: set[str] = field(default_factory=set)  # ids of answers read to the end
    statuses: dict[int, int] = field(default_factory=dict)
    malformed: int = 0
    unexpected: list[str] = field(default_factory=list)

    def count(self, status: int) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1


def chaos(model: str, home: Path, minutes: float, n_malformed: int = 10_000, kills: int = 3) -> list[Figure]:
    seen = Seen()
    n_lives = kills + 1
    most_growth = 0.0
    leaks = 0.0
    for life in range(n_lives):
        server = start(model, home, "--max-body-mb", "4", "--stall-timeout", "2", "--max-requests", "64")
        try:
            warm = _wave(server, seen, 5.0, life, n_malformed // n_lives // 4)
            before = server.rss_mb
            _wave(server, seen, minutes * 60 / n_lives - 5, 100 + life, n_malformed // n_lives - warm)
            most_growth = max(most_growth, server.rss_mb - before)
            leaks += _held(server)
            if server.process.poll() is not None:
                seen.unexpected.append(f"the server ended with {server.process.returncode}")
        finally:
            if life + 1 < n_lives:
                _kill_under_load(server, seen)
            else:
                server.process.terminate()
                server.process.wait(60)
    rows = _rows(home)
    print(f"statuses {dict(sorted(seen.statuses.items()))}, {len(seen.whole):,} answers read to the end")
    for line in seen.unexpected[:10]:
        print(f"unexpected: {line}")
    return [
        Figure(f"chaos of {minutes:g} minutes: growth of memory", most_growth, 64, "MB", is_least=False),
        Figure("requests or cache blocks held after it", leaks, 0, "", is_least=False),
        Figure("malformed requests answered with 4xx", seen.malformed, n_malformed, ""),
        Figure(
            "answers read to the end without one row of the ledger",
            _unpaid(seen, rows),
            0,
            "",
            is_least=False,
        ),
        Figure("rows of the ledger twice", len(rows) - len(set(rows)), 0, "", is_least=False),
        Figure("5xx other than back-pressure, or a crash", len(seen.unexpected), 0, "", is_least=False),
    ]


def _wave(server: Served, seen: Seen, seconds: float, seed: int, n_malformed: int) -> int:
    """All kinds of clients at once for a time; returns how many malformed requests were sent."""
    end = monotonic() + max(seconds, 1)
    kinds: list[Callable[[Served, random.Random, Seen], None]] = [
        _read,
        _vanish,
        _read_slowly,
        _read,
        _vanish,
    ]
    sent = [0]

    def client(number: int) -> None:
        rng = random.Random(seed * 1000 + number)
        while monotonic() < end:
            with suppress(httpx.HTTPError, OSError):
                rng.choice(kinds)(server, rng, seen)

    def attacker() -> None:
        rng = random.Random(seed)
        while monotonic() < end or sent[0] < n_malformed:
            if server.process.poll() is not None:
                return
            _attack(server, rng, seen)
            sent[0] += 1
            if sent[0] >= n_malformed:
                return

    threads = [threading.Thread(target=client, args=(i,)) for i in range(_CLIENTS)]
    threads.append(threading.Thread(target=attacker))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sent[0]


def _body(server: Served, rng: random.Random, **more: object) -> dict[str, object]:
    return {
        "model": server.model,
        "messages": [{"role": "user", "content": f"{rng.randrange(50)}: {_ASKED[0]['content']}"}],
        "max_tokens": rng.randrange(1, 60),
        **more,
    }


def _read(server: Served, rng: random.Random, seen: Seen) -> None:
    """A client that reads its answer, whole or as a stream."""
    is_stream = rng.random() < 0.5
    body = _body(server, rng, stream=is_stream)
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
    seen.count(answer.status_code)
    if answer.status_code == 200:
        if not is_stream or answer.text.rstrip().endswith("[DONE]"):
            seen.whole.add(answer.headers["x-request-id"])
    elif answer.status_code not in (429, 503):
        seen.unexpected.append(f"{answer.status_code} {answer.text[:200]}")


def _vanish(server: Served, rng: random.Random, seen: Seen) -> None:
    """A client that goes away: before the body is sent, in the queue, in prefill or after some tokens."""
    body = json.dumps(_body(server, rng, stream=True, max_tokens=400)).encode()
    host, port = server.address
    with socket.create_connection((host, port), timeout=30) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        sent = head.encode() + body
        connection.sendall(sent[: rng.randrange(1, len(sent))] if rng.random() < 0.3 else sent)
        connection.settimeout(rng.random() * 0.5)
        with suppress(TimeoutError):
            for _ in range(rng.randrange(20)):
                connection.recv(512)


def _read_slowly(server: Served, rng: random.Random, seen: Seen) -> None:
    """A client that reads a few bytes now and then; the server gives it up."""
    body = json.dumps(
        _body(server, rng, stream=True, max_tokens=300, logprobs=True, top_logprobs=20)
    ).encode()
    host, port = server.address
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect((host, port))
    with connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            + f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        for _ in range(rng.randrange(12)):
            connection.settimeout(1)
            with suppress(TimeoutError):
                connection.recv(64)
            sleep(0.3)


def _attack(server: Served, rng: random.Random, seen: Seen) -> None:
    """One malformed request; anything but a 4xx is unexpected."""
    kind = rng.randrange(8)
    host, port = server.address
    path = rng.choice(["/v1/chat/completions", "/v1/completions", "/tokenize"])
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    body = json.dumps(_body(server, rng)).encode()
    if kind == 0:
        sent = head.encode() + f"content-length: {200 << 20}\r\n\r\n".encode()  # 200 MB are announced
    elif kind == 1:
        sent = head.encode() + b"".join(b"x-%d: y\r\n" % i for i in range(5000)) + b"\r\n"
    elif kind == 2:
        cut = bytes(byte ^ (rng.random() < 0.05) * 0x80 for byte in body)
        sent = head.encode() + f"content-length: {len(cut)}\r\n\r\n".encode() + cut
    elif kind == 3:
        half = body[: rng.randrange(1, len(body) - 1)]
        sent = head.encode() + f"content-length: {len(half)}\r\n\r\n".encode() + half
    elif kind == 4:
        wrong = json.dumps(
            {"model": server.model, "messages": rng.choice([1, None, [], {}, [[]], "x"])}
        ).encode()
        sent = head.encode() + f"content-length: {len(wrong)}\r\n\r\n".encode() + wrong
    elif kind == 5:
        deep = b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        sent = head.encode() + f"content-length: {len(deep)}\r\n\r\n".encode() + deep
    elif kind == 6:
        sent = rng.randbytes(rng.randrange(1, 400)) + b"\r\n\r\n"
    else:
        sent = head.encode() + b"content-length: -5\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
    try:
        with socket.create_connection((host, port), timeout=30) as connection:
            connection.sendall(sent)
            got = connection.recv(4096)
    except (ConnectionResetError, BrokenPipeError):
        got = b"HTTP/1.1 4xx closed"  # refused before all of it was sent
    except OSError as error:
        seen.unexpected.append(f"malformed request {kind}: {error!r}")
        return
    if got.startswith(b"HTTP/1.1 4") or not got:
        seen.malformed += 1
    else:
        seen.unexpected.append(f"malformed request {kind}: {got[:100]!r}")


def _held(server: Served) -> float:
    """Requests and blocks that are held when nobody asks for anything any more."""
    for _ in range(100):
        if not server.metric("puna_requests_in_flight"):
            break
        sleep(0.1)
    held = ("puna_requests_in_flight", "puna_engine_sequences", "puna_engine_cache_blocks_used")
    return sum(server.metric(name) for name in held)


def _kill_under_load(server: Served, seen: Seen) -> None:
    def client(number: int) -> None:
        rng = random.Random(number)
        with suppress(httpx.HTTPError, OSError):
            while True:
                _read(server, rng, seen)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    sleep(2)
    server.kill()
    for thread in threads:
        thread.join()


def _rows(home: Path) -> list[str]:
    with sqlite3.connect(home / "ledger.db") as connection:
        return [row[0] for row in connection.execute("select request_id from usage")]


def _unpaid(seen: Seen, rows: list[str]) -> int:
    return len(seen.whole - set(rows))
