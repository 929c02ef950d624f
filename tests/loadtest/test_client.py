"""Requests over real sockets to a scripted server: what is counted, and every kind of error."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from loadtest import scripted as to
from loadtest.scripted import Script, chunk, delta, event, plain, running

from puna.core import BadInput, WorkFailed
from puna.loadtest import LengthMix, Load, Report, Session, Target, Targets, Tenant, first_model, measure
from puna.loadtest.load import TraceLine
from puna.loadtest.stats import Outcome

LOAD = Load(model="m", concurrency=1, requests=1, mix=LengthMix(5, 5))


def always(data: bytes, close: bool = False) -> Script:
    async def script(path: str, body: dict[str, Any], headers: dict[str, str], writer: Any) -> None:
        writer.write(data)
        if close:
            await writer.drain()
            writer.close()

    return script


def measured(script: Script, load: Load = LOAD, **options: Any) -> Report:
    with running(script) as (url, _):
        return measure(Target.of(url), load, Session(**options))


def one(data: bytes, close: bool = False, **options: Any) -> Outcome:
    (found,) = measured(always(data, close), **options).outcomes
    return found


def test_a_good_answer() -> None:
    found = one(to.answer(4, n_prompt=9, n_cached=8))
    assert found.error is None
    assert (found.prompt_tokens, found.output_tokens, found.cached_tokens) == (9, 4, 8)
    assert len(found.deltas) == 4  # the empty ones at both ends are none
    assert found.finish_reason == "stop"
    assert 0 <= found.started <= found.deltas[0] <= found.deltas[-1] <= found.ended


def test_completions_and_what_models_think() -> None:
    events = [
        event({"choices": [{"text": "a", "finish_reason": None}]}),
        event({"choices": [{"delta": {"reasoning_content": "b"}}]}),
        event({"choices": [{"delta": {"content": None, "tool_calls": [{"index": 0}]}}]}),
        event({"choices": [{"delta": {"role": "assistant", "content": ""}}]}),
        event({"choices": [{"text": "", "finish_reason": "length"}]}),
    ]
    found = one(to.STREAM + b"".join(map(chunk, events)) + chunk(b""))
    assert (found.error, len(found.deltas), found.finish_reason) == (None, 3, "length")
    assert (found.prompt_tokens, found.n_output) == (None, 3)


GOOD = chunk(delta("a")) + chunk(delta("b"))


@pytest.mark.parametrize(
    ("kind", "data", "close", "said"),
    [
        ("status_429", plain(429, {"error": {"message": "slow down"}}), False, "slow down"),
        ("status_500", plain(500, {"error": "oh"}), False, "oh"),
        ("status_301", plain(301, {}), False, ""),
        ("broken_stream", to.STREAM + GOOD, True, "middle of the response"),
        ("broken_stream", to.STREAM + GOOD + chunk(b""), False, "without [DONE]"),
        ("broken_stream", plain(200, {})[:-1], True, "middle of the response"),
        ("connection", b"", True, "without a response"),
        ("garbage", b"SSH-2.0\r\n\r\n", False, "expected HTTP/1.1"),
        ("garbage", to.STREAM + GOOD + b"zz\r\n", False, "size of a chunk"),
        ("garbage", to.STREAM + chunk(event(b"{not json")), False, "expected JSON"),
        ("garbage", to.STREAM + chunk(event(b"[" * 100_000)), False, "expected JSON"),
        ("garbage", to.STREAM + chunk(event(b"3")), False, "expected an object"),
        ("garbage", plain(200, {"choices": []}), False, "expected an event stream"),
        (
            "stream_error",
            to.STREAM + GOOD + chunk(event({"error": {"message": "died"}})) + chunk(b""),
            False,
            "died",
        ),
    ],
)
def test_errors_by_kind(kind: str, data: bytes, close: bool, said: str) -> None:
    found = one(data, close)
    assert found.error == kind
    assert said in found.detail
    if data.startswith(to.STREAM + GOOD):
        assert len(found.deltas) == 2


@pytest.mark.parametrize(
    "value",
    [
        {"choices": [3]},
        {"choices": {}},
        {"choices": [{"delta": []}]},
        {"choices": [], "usage": {"prompt_tokens": "x", "completion_tokens": -1, "prompt_tokens_details": 3}},
        {"choices": [{"finish_reason": {"x": 1}}]},
    ],
)
def test_odd_events_are_passed_over(value: object) -> None:
    found = one(to.STREAM + chunk(event(value)) + chunk(event(b"[DONE]")) + chunk(b""))
    assert (found.error, found.n_output, found.prompt_tokens) == (None, 0, None)


def test_a_reset_in_the_stream() -> None:
    async def script(path: str, body: dict[str, Any], headers: dict[str, str], writer: Any) -> None:
        writer.write(to.STREAM + GOOD)
        await writer.drain()
        await asyncio.sleep(0.05)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    (found,) = measured(script).outcomes
    assert (found.error, len(found.deltas)) == ("broken_stream", 2)


def test_a_server_that_hangs_is_a_timeout_and_keeps_what_came() -> None:
    found = one(to.STREAM + GOOD, timeout=0.1)
    assert (found.error, found.detail) == ("timeout", "no complete answer in 0.1 s")
    assert len(found.deltas) == 2


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        target = Target.of(f"http://127.0.0.1:{taken.getsockname()[1]}")
        (found,) = measure(target, LOAD).outcomes
        assert found.error == "connection"
        with pytest.raises(WorkFailed, match=r"must list models, found connection.*is it up"):
            first_model(target)
        with pytest.raises(WorkFailed, match="must answer the warm-up, found connection"):
            measure(target, LOAD, Session(warmup=2))


def test_connections_are_kept() -> None:
    load = Load(model="m", concurrency=2, requests=20, mix=LengthMix(5, 5))
    with running(always(to.answer(2))) as (url, server):
        report = measure(Target.of(url), load)
        assert server.n_connections == 2
    assert report.to_json()["succeeded"] == 20


def test_a_kept_connection_that_the_server_closed_is_no_error() -> None:
    """It answers, and closes at the next request without a byte, as servers do whose time to keep is over."""
    seen: set[Any] = set()

    async def script(path: str, body: dict[str, Any], headers: dict[str, str], writer: Any) -> None:
        if writer in seen:
            writer.close()
            return
        seen.add(writer)
        writer.write(to.answer(1))

    report = measured(script, Load(model="m", concurrency=1, requests=5, mix=LengthMix(5, 5)))
    assert [o.error for o in report.outcomes] == [None] * 5
    assert len(seen) == 5


def test_the_same_seed_sends_the_same_bytes() -> None:
    load = Load(model="m", concurrency=3, requests=12, mix=LengthMix(5, 5), seed=4)
    sent = []
    for _ in range(2):
        with running(always(to.answer(1))) as (url, server):
            measure(Target.of(url), load)
            sent.append(sorted(json.dumps(body) for body in server.bodies))
    assert sent[0] == sent[1]
    assert len(sent[0]) == 12


def test_tenants_send_their_keys_and_have_figures_of_their_own() -> None:
    async def script(path: str, body: dict[str, Any], headers: dict[str, str], writer: Any) -> None:
        good = headers["authorization"] == "Bearer ka"
        writer.write(to.answer(3) if good else plain(429, {"error": "limit"}))

    load = Load(
        model="m",
        concurrency=2,
        requests=40,
        mix=LengthMix(5, 5),
        tenants=(Tenant("a", "ka"), Tenant("b", "kb")),
    )
    found = measured(script, load).to_json(each=True)
    assert "ka" not in json.dumps(found)
    one, other = found["tenants"]["a"], found["tenants"]["b"]
    assert one["requests"] + other["requests"] == 40
    assert one["succeeded"] == one["requests"] > 0
    assert other["errors"] == {"status_429": other["requests"]}
    assert found["output_tokens"] == 3 * one["requests"]
    assert len(found["each"]) == 40
    assert any(note.startswith("status_429") and "limit" in note for note in found["notes"])


def test_warm_up_counts_nowhere() -> None:
    with running(always(to.answer(2))) as (url, server):
        report = measure(Target.of(url), LOAD, Session(warmup=3))
        assert len(server.bodies) == 4
    assert report.to_json()["requests"] == 1


def test_what_a_server_does_not_keep_is_noted() -> None:
    load = Load(model="m", concurrency=1, requests=1, mix=LengthMix(5, 5), ignore_end=True)
    no_usage = to.STREAM + chunk(delta("a", "stop")) + chunk(b"")
    notes = measured(always(no_usage), load).notes()
    assert any("without usage" in note for note in notes)
    assert any("ignore_eos" in note for note in notes)


def test_plot_and_goodput(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    from puna.loadtest.plot import plot

    report = measured(always(to.answer(2)), targets=Targets(1000.0, 1000.0))
    assert report.to_json()["goodput"]["share"] == 1
    plot(report, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert (image.format, image.size) == ("PNG", (1600, 1000))
    failed = measured(always(plain(500, {})))
    plot(failed, tmp_path / "b.png")
    assert (tmp_path / "b.png").stat().st_size > 1000


def test_the_first_model() -> None:
    with running(always(plain(200, {"data": [{"id": "one"}, {"id": "two"}]}))) as (url, _):
        assert first_model(Target.of(url)) == "one"
    for data, said in (
        (plain(200, {"data": []}), "found none"),
        (plain(200, {"models": []}), "give --model"),
        (plain(401, {"error": "no key"}), "status 401.*no key.*--key"),
    ):
        with running(always(data)) as (url, _), pytest.raises(WorkFailed, match=said):
            first_model(Target.of(url))


@pytest.mark.parametrize(
    ("url", "authority", "base"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080", "/v1"),
        ("http://localhost:8080/v1/", "localhost:8080", "/v1"),
        ("https://x.example/openai/v1", "x.example:443", "/openai/v1"),
        ("http://[::1]:80", "[::1]:80", "/v1"),
    ],
)
def test_urls(url: str, authority: str, base: str) -> None:
    target = Target.of(url)
    assert (target.authority, target.base, target.tls is not None) == (
        authority,
        base,
        url.startswith("https"),
    )


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:80",
        "ftp://x",
        "http://",
        "http://x:port",
        "http://u:p@x",
        "http://x?y",
        "http://x/\r\nA: b",
    ],
)
def test_bad_urls(url: str) -> None:
    with pytest.raises(BadInput, match="URL must"):
        Target.of(url)


def test_other_machines_need_consent() -> None:
    Target.of("http://127.0.0.1:1").require_local()
    Target.of("http://[::1]:1").require_local()
    with pytest.raises(BadInput, match="another machine: add --yes-remote"):
        Target.of("http://192.0.2.1:80").require_local()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_tls_is_verified_unless_told_otherwise(tmp_path: Path) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    subprocess.run([*make.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with running(always(to.answer(3)), tls) as (url, _):
        (trusting,) = measure(Target.of(url, verify=False), LOAD).outcomes
        (careful,) = measure(Target.of(url), LOAD).outcomes
    assert (trusting.error, trusting.output_tokens) == (None, 3)
    assert careful.error == "connection"
    assert "certificate verify failed" in careful.detail


def test_text_that_utf8_cannot_hold_is_sent_as_it_is() -> None:
    trace = [TraceLine(3, prompt="a\ud800b")]
    with running(always(to.answer(1))) as (url, server):
        report = measure(Target.of(url), Load(model="m", concurrency=1, requests=1, trace=trace))
        assert server.bodies[0]["messages"][0]["content"] == "a\ud800b"
    assert report.outcomes[0].error is None
