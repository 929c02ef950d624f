"""What an operator relies on: cancelling, limits, errors in steps, drain, metrics."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from llm.tiny_llm import write_tiny_llm
from server.conftest import Running, Start

from puna.cli.serve_settings import read_config
from puna.core import BadValue, UnknownOption
from puna.server.calls import Call
from puna.server.config import ServerConfig
from puna.server.errors import ApiError
from puna.server.fetch import fetch_image, public_address

LONG: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Go on."}],
    "temperature": 0,
    "ignore_eos": True,
}


def until(condition: Callable[[], bool]) -> None:
    for _ in range(1500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came true")


class Slow:
    """Lets one step of an executor pass at a time, once it is told to."""

    def __init__(self, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        executor = running.llm._engine._engine._executor
        step = executor.step
        self.gate = threading.Semaphore(10**6)
        self.error: Exception | None = None
        self.n_steps = 0

        def gated(batch: Any) -> Any:
            assert self.gate.acquire(timeout=30)
            self.n_steps += 1
            if self.error is not None:
                error, self.error = self.error, None
                raise error
            return step(batch)

        monkeypatch.setattr(type(executor), "step", lambda _, batch: gated(batch))

    def close(self) -> None:
        self.gate = threading.Semaphore(2)  # a prompt, and one token of its answer

    def open(self) -> None:
        self.gate.release(10**6)


def home(folder: Path) -> dict[str, str]:
    """The environment of a server that keeps its database and journal in a folder of its own."""
    return {**os.environ, "PUNA_HOME": str(folder)}


def n_cancelled(running: Running) -> float:
    labels = {"model": "tiny", "tenant": "", "endpoint": "chat", "status": "cancelled"}
    return running.service.metrics.registry.get_sample_value("puna_requests_total", labels) or 0


def free_blocks(running: Running) -> int:
    return running.llm._engine._engine._scheduler.blocks.n_free


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_goes_away_stops_its_answer(
    server: Running, monkeypatch: pytest.MonkeyPatch, streams: bool, caplog: pytest.LogCaptureFixture
) -> None:
    slow = Slow(server, monkeypatch)
    n_free, n_before, failures = free_blocks(server), n_cancelled(server), server.service.watch.failures
    slow.close()
    client = httpx.Client(timeout=60)
    if streams:
        with client.stream(
            "POST", f"{server.url}/v1/chat/completions", json={**LONG, "stream": True}
        ) as answer:
            assert next(answer.iter_lines()).startswith("data: ")
    else:
        with pytest.raises(httpx.ReadTimeout):
            client.post(f"{server.url}/v1/chat/completions", json=LONG, timeout=0.5)
    client.close()
    # the order to cancel waits for the step under way, or came between two steps and has been obeyed
    until(lambda: not server.llm._engine._commands.empty() or not server.service.calls)
    slow.open()
    until(lambda: not server.service.calls)
    assert slow.n_steps <= 3  # two that were let through, and the one that was under way
    assert free_blocks(server) == n_free
    assert n_cancelled(server) == n_before + 1
    assert server.service.watch.failures == failures  # the server has done nothing wrong
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_step_that_fails_is_an_error_of_its_requests(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(server, monkeypatch)
    slow.error = MemoryError("no more")
    answer = server.post("/v1/chat/completions", {**LONG, "max_tokens": 3})
    assert answer.status_code == 500
    assert "MemoryError: no more" in answer.json()["error"]["message"]
    assert server.post("/v1/chat/completions", {**LONG, "max_tokens": 3}).status_code == 200
    slow.error = MemoryError("no more")
    answer = server.post("/v1/chat/completions", {**LONG, "max_tokens": 3, "stream": True})
    events = [line for line in answer.text.split("\n\n") if line]
    assert '"error"' in events[-2]
    assert events[-1] == "data: [DONE]"


def test_a_request_has_its_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(ServerConfig(port=0, timeout=1))
    slow = Slow(server, monkeypatch)
    slow.close()
    threading.Timer(1.3, slow.open).start()
    answer = server.post("/v1/chat/completions", LONG)
    assert answer.status_code == 504
    assert "1 seconds" in answer.json()["error"]["message"]


def test_more_requests_than_there_is_room_for(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(ServerConfig(port=0, max_requests=1))
    slow = Slow(server, monkeypatch)
    slow.close()
    first = threading.Thread(target=server.post, args=("/v1/chat/completions", {**LONG, "max_tokens": 4}))
    first.start()
    until(lambda: bool(server.service.calls))
    refused = server.post("/v1/chat/completions", {**LONG, "max_tokens": 4})
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    slow.open()
    first.join(30)
    assert server.post("/v1/chat/completions", {**LONG, "max_tokens": 4}).status_code == 200


def test_bodies_have_a_limit(start: Start) -> None:
    server = start(ServerConfig(port=0, max_body_mb=1))
    url = f"{server.url}/v1/chat/completions"
    headers = {"content-type": "application/json"}
    whole = httpx.post(url, content=b"x" * (2 << 20), headers=headers)
    parts = httpx.post(url, content=(b"x" * (1 << 18) for _ in range(8)), headers=headers)
    for answer in (whole, parts):
        assert answer.status_code == 413
        assert "1,048,576 bytes" in answer.json()["error"]["message"]


def test_sigterm_finishes_what_was_begun(tmp_path: Path) -> None:
    path = write_tiny_llm(tmp_path / "tiny.gguf", context=4096)
    options = ["--port", "0", "--threads", "1", "--log-format", "json"]
    command = [sys.executable, "-m", "puna", "serve", str(path), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=home(tmp_path)) as process:
        try:
            assert process.stderr is not None
            load, start = (json.loads(process.stderr.readline()) for _ in range(2))
            _drain(start["url"], process.pid)
            assert process.wait(30) == 0
            lines = [json.loads(line) for line in process.stderr]
        finally:
            process.kill()
    assert (load["event"], load["model"]) == ("load", "tiny")
    assert (start["event"], start["models"][0]["name"]) == ("start", "tiny")
    assert [line["event"] for line in lines if line["event"] != "call"] == ["drain", "refused", "stop"]
    assert [line["status"] for line in lines if line["event"] == "call"] == ["ok"] * 8


def _drain(url: str, pid: int) -> None:
    answers: list[httpx.Response] = []

    def ask() -> None:
        body = {**LONG, "max_tokens": 2000, "stream": True}
        answers.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: "in_flight 8.0" in httpx.get(f"{url}/metrics").text)
    os.kill(pid, signal.SIGTERM)
    until(lambda: httpx.get(f"{url}/ready").status_code == 503)
    assert httpx.post(f"{url}/v1/chat/completions", json=LONG).status_code == 503
    for thread in threads:
        thread.join(60)
    assert [answer.text.rstrip()[-6:] for answer in answers] == ["[DONE]"] * 8
    assert all('"finish_reason":"length"' in answer.text for answer in answers)


def test_an_answer_that_the_end_of_the_drain_cuts_off_is_an_error(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(ServerConfig(port=0, grace=0))
    slow = Slow(server, monkeypatch)
    slow.close()
    answers: dict[bool, httpx.Response] = {}

    def ask(streams: bool) -> None:
        answers[streams] = server.post("/v1/chat/completions", {**LONG, "stream": streams})

    threads = [threading.Thread(target=ask, args=(streams,)) for streams in (True, False)]
    for thread in threads:
        thread.start()
    until(lambda: len(server.service.calls) == 2)
    server.service.is_draining = True
    until(lambda: not server.llm._engine._commands.empty() or not server.service.calls)
    slow.open()
    for thread in threads:
        thread.join(30)
    assert answers[False].status_code == 503
    assert "shut down" in answers[False].json()["error"]["message"]
    assert '"finish_reason":"stop"' not in answers[True].text
    assert '"error"' in answers[True].text


def test_a_prompt_that_the_end_of_the_drain_comes_upon_is_an_error(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in flight, and nothing of it is in the engine yet that could be cancelled."""
    server = start(ServerConfig(port=0, grace=0))
    may_go_on, request, cancel = threading.Event(), server.llm.chat_request, Call.cancel
    cancelled: list[Call] = []

    def held(*args: Any, **options: Any) -> Any:
        assert may_go_on.wait(30)
        return request(*args, **options)

    def noted(call: Call) -> None:
        cancelled.append(call)
        cancel(call)

    monkeypatch.setattr(server.llm, "chat_request", held)
    monkeypatch.setattr(Call, "cancel", noted)
    with ThreadPoolExecutor(2) as clients:
        bodies = [{**LONG, "stream": streams} for streams in (True, False)]
        asked = [clients.submit(server.post, "/v1/chat/completions", body) for body in bodies]
        until(lambda: len(server.service.calls) == 2)
        server.service.is_draining = True
        until(lambda: len(cancelled) == 2)
        may_go_on.set()
        for answer in [one.result() for one in asked]:
            assert answer.status_code == 503, answer.text
            assert "shut down" in answer.json()["error"]["message"]
            assert answer.headers["retry-after"]
    assert not server.service.calls


def test_only_loopback_is_served_without_keys(tiny_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "puna", "serve", str(tiny_path), "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=home(tmp_path))
    assert done.returncode == 2
    assert "needs API keys, there are none" in done.stderr


def test_images_come_from_allowed_public_hosts_only() -> None:
    async def main() -> None:
        with pytest.raises(ApiError, match="from no host"):
            await fetch_image("http://127.0.0.1/x.png", [], "messages[0]")
        with pytest.raises(ApiError, match="not a public one"):
            await fetch_image("http://localhost:1/x.png", ["localhost"], "messages[0]")
        for host in (
            "127.0.0.1",
            "10.0.0.1",
            "169.254.169.254",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "fd00::1",
        ):
            with pytest.raises(ValueError, match="not a public one"):
                await public_address(host, 80)

    asyncio.run(main())


def test_a_message_cannot_name_a_path(server: Running, tiny_path: Path) -> None:
    for part in (
        {"type": "image", "image": str(tiny_path)},
        {"type": "image_url", "image_url": {"url": f"file://{tiny_path}"}},
        {"type": "image_url", "image_url": {"url": str(tiny_path)}},
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}},
    ):
        body = {"model": "tiny", "messages": [{"role": "user", "content": [part]}]}
        assert server.post("/v1/chat/completions", body).status_code == 400


def test_a_configuration_file(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text('port = 9000\ntimeout = 5\ncors_origin = ["https://example.org"]\n')
    assert read_config(path) == {"port": 9000, "timeout": 5.0, "cors_origin": ["https://example.org"]}
    path.write_text("prot = 9000\n")
    with pytest.raises(UnknownOption, match="'prot'; did you mean 'port'"):
        read_config(path)
    path.write_text('port = "9000"\n')
    with pytest.raises(BadValue, match="port must be like 8000, found '9000'"):
        read_config(path)
    path.write_text("port =\n")
    with pytest.raises(BadValue, match="TOML"):
        read_config(path)
    with pytest.raises(BadValue, match="port must be from 0 to 65,535, got 70000"):
        ServerConfig(port=70000)
    for nonsense in ("nonsense", "localhost:4318", "http://", "http://[::1", "http://a:99999"):
        with pytest.raises(BadValue, match="otel_endpoint must be a URL like"):
            ServerConfig(otel_endpoint=nonsense)
    with pytest.raises(BadValue, match="tls_key is missing"):
        ServerConfig(tls_cert="a.pem")
