"""The front before replicas that are played: what a client gets when they die, are full or say nothing."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from typing import Any

import pytest

from puna.server.cluster.wire import Envelope, Part
from puna.server.config import ServerConfig

if find_spec("ray") is None:
    pytest.skip("Ray is not installed (make test-ray)", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own
    from ray.exceptions import ActorDiedError
    from ray.serve.exceptions import BackPressureError

    from puna.server.cluster import front as module
    from puna.server.cluster.front import Front, create_front

SSE = ((b"content-type", b"text/event-stream; charset=utf-8"),)
JSON = ((b"content-type", b"application/json"),)
NDJSON = ((b"content-type", b"application/x-ndjson"),)
Play = Callable[[Envelope], AsyncIterator[Part]]


class Handle:
    """A DeploymentHandle whose replicas do what `plays` say, one play for each time that one is asked."""

    def __init__(self, *plays: Play) -> None:
        self._plays = list(plays)
        self.asked: list[Envelope] = []
        self.n_cancelled = 0

    def options(self, *, stream: bool) -> Handle:
        assert stream
        return self

    @property
    def answer(self) -> Handle:
        return self

    def remote(self, envelope: Envelope) -> Any:
        self.asked.append(envelope)
        return _Answer(self, self._plays.pop(0)(envelope))


class _Answer:
    def __init__(self, handle: Handle, parts: AsyncIterator[Part]) -> None:
        self._handle = handle
        self._parts = parts

    def __aiter__(self) -> AsyncIterator[Part]:
        return self._parts

    def cancel(self) -> None:
        self._handle.n_cancelled += 1


def play(*parts: Part, then: BaseException | None = None, waits: bool = False) -> Play:
    async def answer(envelope: Envelope) -> AsyncIterator[Part]:
        for part in parts:
            yield part
        if waits:
            await asyncio.Event().wait()
        if then is not None:
            raise then

    return answer


class Asked:
    """One request to a front, and what its client received."""

    def __init__(self, front: Front, path: str = "/v1/chat/completions") -> None:
        self.sent: list[dict[str, Any]] = []
        self.leaves = asyncio.Event()
        self.blocks = False
        self._is_read = False
        self._app = create_front(front)
        self._scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}

    async def run(self) -> None:
        await self._app(self._scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if not self._is_read:
            self._is_read = True
            return {"type": "http.request", "body": b'{"prompt": "Hello"}'}
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if self.blocks and message.get("body"):
            await asyncio.Event().wait()
        self.sent.append(message)

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error


def front_of(*plays: Play, **settings: Any) -> tuple[Front, Handle]:
    handle = Handle(*plays)
    return Front(ServerConfig(**settings), handle, lambda: ["a"]), handle  # type: ignore[arg-type]


def ask(*plays: Play, path: str = "/v1/chat/completions") -> tuple[Asked, Handle]:
    front, handle = front_of(*plays)

    async def run() -> Asked:
        asked = Asked(front, path)
        await asked.run()
        return asked

    asked = asyncio.run(run())
    assert not front.calls
    return asked, handle


def test_an_answer_goes_through_with_the_name_of_its_replica() -> None:
    asked, _ = ask(play(Part(b"", 200, JSON, "a"), Part(b"{}")))
    assert (asked.status, asked.body) == (200, b"{}")
    assert (b"x-puna-replica", b"a") in asked.sent[0]["headers"]
    assert not asked.sent[-1].get("more_body")


def test_a_replica_that_dies_before_it_answers_is_replaced_under_the_same_id() -> None:
    asked, handle = ask(play(then=ActorDiedError()), play(Part(b"{}", 200, JSON, "b")))
    assert asked.status == 200
    assert handle.asked[0] == handle.asked[1]
    assert handle.asked[0].id


def test_replicas_that_die_one_after_the_other_are_an_error() -> None:
    asked, handle = ask(*[play(then=ActorDiedError())] * 3)
    assert (asked.status, asked.error["code"], len(handle.asked)) == (502, "replica_lost", 3)


def test_a_stream_that_breaks_off_says_so() -> None:
    asked, handle = ask(play(Part(b"data: {}\n\n", 200, SSE, "a"), then=ActorDiedError()))
    assert asked.status == 200
    first, error, done, end = asked.body.split(b"\n\n")
    assert (first, done, end) == (b"data: {}", b"data: [DONE]", b"")
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "replica_lost"
    assert len(handle.asked) == 1


def test_each_api_is_told_in_its_own_words() -> None:
    front, _ = front_of(play(Part(b"event: ping\n\n", 200, SSE, "a"), then=ActorDiedError()))
    front.dialects.add("/v1/messages", lambda error: {"type": "error", "error": {"message": error.message}})

    async def run() -> Asked:
        asked = Asked(front, "/v1/messages")
        await asked.run()
        return asked

    last = asyncio.run(run()).body.split(b"\n\n")[1]
    assert last.startswith(b'event: error\ndata: {"type":"error","error":{"message":"the replica')
    asked, _ = ask(play(Part(b"{}\n", 200, NDJSON, "a"), then=ActorDiedError()), path="/api/chat")
    assert "error" in json.loads(asked.body.splitlines()[1])


def test_half_a_body_is_not_passed_off_as_whole() -> None:
    with pytest.raises(ConnectionResetError):
        ask(play(Part(b'{"choi', 200, JSON, "a"), then=ActorDiedError()))


def test_replicas_without_room() -> None:
    asked, _ = ask(play(then=BackPressureError(num_queued_requests=1, max_queued_requests=1)))
    assert (asked.status, dict(asked.sent[0]["headers"])[b"retry-after"]) == (503, b"1")


def test_what_is_left_when_the_time_to_drain_is_over_is_cut_off() -> None:
    part = Part(b"data: {}\n\n", 200, SSE, "a")
    front, handle = front_of(play(part, waits=True), play(waits=True))

    async def run() -> list[Asked]:
        both = [Asked(front), Asked(front)]
        tasks = []
        for asked in both:
            tasks.append(asyncio.create_task(asked.run()))
            await asyncio.sleep(0.01)
        front.is_draining = True
        for call in list(front.calls):
            call.cancel()
        await asyncio.gather(*tasks)
        return both

    begun, waiting = asyncio.run(run())
    assert b"shutting down" in begun.body
    assert (waiting.status, waiting.error["type"]) == (503, "server_error")
    assert handle.n_cancelled == 2
    assert not front.calls


def test_a_client_that_leaves_or_does_not_read_is_cancelled() -> None:
    part = Part(b"data: {}\n\n", 200, SSE, "a")
    front, handle = front_of(play(waits=True), play(part, waits=True), stall_timeout=1.0)

    async def run() -> None:
        leaving, blocked = Asked(front), Asked(front)
        blocked.blocks = True
        tasks = [asyncio.create_task(leaving.run())]
        await asyncio.sleep(0.01)
        tasks.append(asyncio.create_task(blocked.run()))
        leaving.leaves.set()
        await asyncio.gather(*tasks)
        assert not leaving.sent

    asyncio.run(run())
    assert handle.n_cancelled == 2
    assert not front.calls


def test_a_front_that_drains_takes_nothing_new() -> None:
    front, handle = front_of()
    front.is_draining = True

    async def run() -> Asked:
        asked = Asked(front)
        await asked.run()
        return asked

    asked = asyncio.run(run())
    assert (asked.status, handle.asked) == (503, [])


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", -0.95)
    front, _ = front_of(play(waits=True), timeout=1.0)

    async def run() -> Asked:
        asked = Asked(front)
        await asked.run()
        return asked

    asked = asyncio.run(run())
    assert asked.status == 503
    assert "no replica had an answer within 0.05 seconds" in asked.error["message"]
