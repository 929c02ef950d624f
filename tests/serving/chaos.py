"""Chaos for a bounded time: what hostile and unlucky clients do, while whatever the server rests on fails.

A server lives four times: it is killed twice under load, once after its disk was full for a while and once
after its PostgreSQL was killed, and in the end it is told to stop. Every client that reads an answer to its
end notes its id; the ledger must have exactly one row for each, whatever was killed when. Memory is compared
within each life once its cache has been filled and it is warm, and after each wave no request and no cache
block may be held.
"""

from __future__ import annotations

import json
import random
import resource
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep

import httpx
from server.postgres import Postgres, has_postgres
from serving.figure import Figure
from serving.process import Served, start

from puna.server.storage.database import open_database
from puna.server.tenants.queries import Filters, export_csv

_CLIENTS, _ATTACKERS = 12, 4
_ASKED = "Tell me about the high grassland where llamas live."
_BODY_MB = 4  # that the server takes
_WARM_S = 5.0
_HTTP = "HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"


@dataclass
class Seen:
    """What clients were told, over all lives of the server."""

    whole: dict[str, set[str]] = field(default_factory=dict)  # ids of answers read to the end, by database
    statuses: dict[int, int] = field(default_factory=dict)
    malformed: int = 0
    unexpected: list[str] = field(default_factory=list)
    most_growth: float = 0.0  # megabytes
    held: float = 0.0  # requests and cache blocks
    failed_in_drain: int = 0

    def count(self, status: int) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1


@dataclass(frozen=True)
class Life:
    """One life of a server: its database, and what happens to it in the middle and in the end."""

    database: str
    trouble: Callable[[Served], None] | None = None  # begins it
    relief: Callable[[Served], None] | None = None  # ends it
    is_killed: bool = True


def chaos(
    model: str,
    home: Path,
    minutes: float,
    n_malformed: int = 10_000,
    warm_s: float = _WARM_S,
    lives: Sequence[Life] = (),
) -> list[Figure]:
    """`lives` in place of the four, for a shorter one."""
    seen = Seen()
    with ExitStack() as stack:
        lives = lives or [*_lives(home, stack)]
        for i, life in enumerate(lives):
            seconds = minutes * 60 / len(lives)
            _live(model, home, life, seen, i, warm_s, seconds - warm_s, -(-n_malformed // len(lives)))
        rows = {life.database: _rows(life.database) for life in lives}
    print(
        f"statuses {dict(sorted(seen.statuses.items()))}, {sum(map(len, seen.whole.values())):,} answers "
        f"read to the end, {sum(map(len, rows.values())):,} rows of ledgers"
    )
    for line in seen.unexpected[:10]:
        print(f"unexpected: {line}")
    unpaid = sum(len(ids - set(rows[database])) for database, ids in seen.whole.items())
    twice = sum(len(found) - len(set(found)) for found in rows.values())

    def most(name: str, found: float, wanted: float = 0, unit: str = "") -> Figure:
        return Figure(name, found, wanted, unit, is_least=False)

    n_read = sum(map(len, seen.whole.values()))
    n_sent = -(-n_malformed // len(lives)) * len(lives)
    return [
        most(f"chaos of {minutes:g} minutes: growth of memory", seen.most_growth, 64, "MB"),
        most("requests or cache blocks held after it", seen.held),
        Figure("malformed requests answered with 4xx", seen.malformed, n_sent, ""),
        Figure("answers read to the end", n_read, 20, ""),
        most("of these without a row of the ledger", unpaid),
        most("rows of the ledger twice", twice),
        most("requests that failed in the drain at the end", seen.failed_in_drain),
        most("5xx other than back-pressure, or a crash", len(seen.unexpected)),
    ]


def _lives(home: Path, stack: ExitStack) -> Iterator[Life]:
    sqlite = f"sqlite:///{home}/ledger.db"
    yield Life(sqlite)
    yield Life(sqlite, lambda server: _fill_disk(server, True), lambda server: _fill_disk(server, False))
    if has_postgres():
        postgres = stack.enter_context(_postgres())
        yield Life(postgres.create("ledger"), lambda _: postgres.kill(), lambda _: postgres.start())
    else:
        print("PostgreSQL is not installed, so none is killed")
    yield Life(sqlite, is_killed=False)


@contextmanager
def _postgres() -> Iterator[Postgres]:
    with TemporaryDirectory(prefix="puna-chaos-") as folder:
        server = Postgres(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _fill_disk(server: Served, is_full: bool) -> None:
    """No file of the server can grow, as on a disk without room."""
    _, most = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0 if is_full else most, most))


def _live(
    model: str, home: Path, life: Life, seen: Seen, seed: int, warm_s: float, seconds: float, n_malformed: int
) -> None:
    flags = ("--max-body-mb", str(_BODY_MB), "--stall-timeout", "2", "--max-requests", "64")
    place = home / life.database.partition(":")[0]  # a journal belongs to one database
    server = start(model, place, *flags, database=life.database)
    ids = seen.whole.setdefault(life.database, set())
    try:
        server.fill_cache()
        _wave(server, seen, ids, warm_s, seed, n_malformed // 4)
        before = server.rss_mb
        trouble = threading.Thread(target=_befall, args=(server, life, seconds))
        trouble.start()
        _wave(server, seen, ids, seconds, 100 + seed, n_malformed - n_malformed // 4)
        trouble.join()
        if not _answers(server):
            seen.unexpected.append(f"no answer within a minute after the wave of life {seed}")
        seen.held += _held(server)
        seen.most_growth = max(seen.most_growth, server.rss_mb - before)
        _end_under_load(server, seen, ids, life)
    finally:
        if server.process.poll() is None:
            server.kill()


def _befall(server: Served, life: Life, seconds: float) -> None:
    """The trouble of a life: in the second third of its time."""
    if life.trouble is None or life.relief is None:
        return
    sleep(seconds / 3)
    life.trouble(server)
    sleep(seconds / 3)
    life.relief(server)


def _answers(server: Served) -> bool:
    """Whether it comes to answer again."""
    body = {"model": server.model, "prompt": "a", "max_tokens": 1}
    for _ in range(120):
        with suppress(httpx.HTTPError):
            if httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code == 200:
                return True
        sleep(0.5)
    return False


def _wave(server: Served, seen: Seen, ids: set[str], seconds: float, seed: int, n_malformed: int) -> None:
    """All kinds of clients at once for a time, and so many malformed requests."""
    end = monotonic() + seconds

    def client(number: int) -> None:
        rng = random.Random(seed * 1000 + number)
        while monotonic() < end:
            with suppress(httpx.HTTPError, OSError):
                kind = rng.randrange(5)
                if kind < 2:
                    _read(server, rng, seen, ids)
                elif kind < 4:
                    _vanish(server, rng)
                else:
                    _read_slowly(server, rng, end)

    def attacker(number: int) -> None:
        rng = random.Random(-seed * 1000 - number)
        for _ in range(number, n_malformed, _ATTACKERS):
            if server.process.poll() is not None:
                seen.unexpected.append(f"the server ended with {server.process.returncode}")
                return
            _attack(server, rng, seen)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(_CLIENTS)]
    threads += [threading.Thread(target=attacker, args=(i,)) for i in range(_ATTACKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _body(server: Served, rng: random.Random, **more: object) -> dict[str, object]:
    return {
        "model": server.model,
        "messages": [{"role": "user", "content": f"{rng.randrange(50)}: {_ASKED}"}],
        "max_tokens": rng.randrange(1, 60),
        **more,
    }


def _read(server: Served, rng: random.Random, seen: Seen, ids: set[str]) -> bool:
    """A client that reads its answer, whole or as a stream; whether all is as it should be."""
    is_stream = rng.random() < 0.5
    body = _body(server, rng, stream=is_stream)
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
    seen.count(answer.status_code)
    if answer.status_code == 200:
        if not is_stream or answer.text.rstrip().endswith("[DONE]"):
            ids.add(answer.headers["x-request-id"])
            return True
    elif answer.status_code not in (429, 503):
        seen.unexpected.append(f"{answer.status_code} {answer.text[:200]}")
    return False


def _chat(body: bytes) -> bytes:
    """A request as bytes."""
    return f"POST /v1/chat/completions {_HTTP}content-length: {len(body)}\r\n\r\n".encode() + body


def _vanish(server: Served, rng: random.Random) -> None:
    """A client that goes away: before the body is sent, in the queue, in prefill or after some tokens."""
    sent = _chat(json.dumps(_body(server, rng, stream=True, max_tokens=400)).encode())
    with socket.create_connection(server.address, timeout=30) as connection:
        connection.sendall(sent[: rng.randrange(1, len(sent))] if rng.random() < 0.3 else sent)
        connection.settimeout(rng.random() * 0.5)
        with suppress(TimeoutError):
            for _ in range(rng.randrange(20)):
                connection.recv(512)


def _read_slowly(server: Served, rng: random.Random, end: float) -> None:
    """A client that reads a few bytes now and then; the server gives it up."""
    asked = _body(server, rng, stream=True, max_tokens=300, logprobs=True, top_logprobs=20)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(server.address)
        connection.sendall(_chat(json.dumps(asked).encode()))
        for _ in range(rng.randrange(12)):
            if monotonic() > end:
                break
            connection.settimeout(1)
            with suppress(TimeoutError):
                connection.recv(64)
            sleep(0.3)


def _attack(server: Served, rng: random.Random, seen: Seen) -> None:
    """One malformed request; anything but a 4xx, or a connection that is closed, is unexpected."""
    kind = rng.randrange(10)
    sent = _malformed(kind, server, rng)
    got = b""
    try:
        with socket.create_connection(server.address, timeout=60) as connection:
            with suppress(ConnectionResetError, BrokenPipeError):  # refused before all of it was sent
                connection.sendall(sent)
            with suppress(ConnectionResetError):
                got = connection.recv(4096)
    except OSError as error:
        seen.unexpected.append(f"malformed request {kind}: {error!r}")
        return
    if got.startswith(b"HTTP/1.1 4") or not got:
        seen.malformed += 1
    else:
        seen.unexpected.append(f"malformed request {kind}: {got[:100]!r}")


def _malformed(kind: int, server: Served, rng: random.Random) -> bytes:
    path = rng.choice(["/v1/chat/completions", "/v1/completions", "/tokenize"])
    head = f"POST {path} {_HTTP}".encode()
    good = json.dumps(_body(server, rng)).encode()

    def with_body(body: bytes) -> bytes:
        return head + b"content-length: %d\r\n\r\n" % len(body) + body

    match kind:
        case 0:  # 200 MB are announced
            return head + b"content-length: %d\r\n\r\n" % (200 << 20)
        case 1:
            return head + b"".join(b"x-%d: y\r\n" % i for i in range(5000)) + b"\r\n"
        case 2:  # no UTF-8
            at = rng.randrange(len(good))
            return with_body(good[:at] + bytes([good[at] ^ 0x80]) + good[at + 1 :])
        case 3:
            return with_body(good[: rng.randrange(1, len(good) - 1)])
        case 4:
            wrong = rng.choice([1, None, [], {}, [[]], "x"])
            return with_body(json.dumps({"model": server.model, "messages": wrong}).encode())
        case 5:
            return with_body(b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
        case 6:
            return rng.randbytes(rng.randrange(1, 400)) + b"\r\n\r\n"
        case 7:
            return head + b"content-length: -5\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
        case 8:  # more than the server takes, and it was not told so before
            part = b"%x\r\n%s\r\n" % (1 << 20, b" " * (1 << 20))
            return head + b"transfer-encoding: chunked\r\n\r\n" + part * (_BODY_MB + 1) + b"0\r\n\r\n"
        case _:  # one header of a megabyte, and no end of it
            return head + b"x-long: " + b"a" * (1 << 20)


def _held(server: Served) -> float:
    """Requests and blocks that are held when nobody asks for anything any more."""
    held = ("puna_requests_in_flight", "puna_engine_sequences", "puna_engine_cache_blocks_used")
    for _ in range(100):
        if not sum(server.metric(name) for name in held):
            break
        sleep(0.1)
    return sum(server.metric(name) for name in held)


def _end_under_load(server: Served, seen: Seen, ids: set[str], life: Life) -> None:
    """Kill the server while clients read their answers, or tell it to stop: then none of them may fail."""
    is_ending = threading.Event()
    failed: list[int] = []

    def client(number: int) -> None:
        rng = random.Random(number)
        with suppress(httpx.HTTPError, OSError):
            while not is_ending.is_set() or life.is_killed:
                if not _read(server, rng, seen, ids) and not is_ending.is_set():
                    failed.append(number)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    sleep(2)
    if life.is_killed:
        server.kill()
    else:
        is_ending.set()
        server.process.terminate()
        server.process.wait(60)
    for thread in threads:
        thread.join()
    if not life.is_killed:
        seen.failed_in_drain += len(failed)


def _rows(database: str) -> list[str]:
    """The ids of a ledger."""
    opened = open_database(database)
    try:
        lines = "".join(export_csv(opened, Filters())).splitlines()
        at = lines[0].split(",").index("request_id")
        return [line.split(",")[at] for line in lines[1:]]
    finally:
        opened.close()
