"""Traces, as a collector gets them over OTLP."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from server.conftest import Running, Start, open_accounts
from server.test_operations import Slow, until

from puna.core import BadInput, BadValue
from puna.server.config import ServerConfig
from puna.server.tenants.queries import page
from puna.server.traces import open_traces

pytest.importorskip("opentelemetry.sdk", reason="needs puna[otel]")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as names

SECRET = "xylophone"
CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": SECRET}],
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.75,
    "seed": 1,
    "ignore_eos": True,
}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """An OTLP collector on a port of its own."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.requests: list[ExportTraceServiceRequest] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                collector.paths.append(self.path)
                collector.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def spans(self) -> list[Any]:
        groups = [group for request in self.requests for group in request.resource_spans]
        return [span for group in groups for scope in group.scope_spans for span in scope.spans]

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    def value(found: Any) -> Any:
        kind = found.WhichOneof("value")
        return (
            [value(item) for item in found.array_value.values]
            if kind == "array_value"
            else getattr(found, kind)
        )

    return {item.key: value(item.value) for item in span.attributes}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def spans_of(server: Running, collector: Collector, n_calls: int) -> list[Any]:
    """All spans once those of `n_calls` are there: four for each."""
    server.service.traces._provider.force_flush()  # type: ignore[attr-defined]
    until(lambda: len(collector.spans()) >= 4 * n_calls)
    spans = collector.spans()
    collector.requests.clear()
    return spans


@pytest.fixture(scope="module")
def server(start: Start, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Running:
    accounts = open_accounts(tmp_path_factory.mktemp("ledger"))
    return start(ServerConfig(port=0, otel_endpoint=collector.url), accounts)


def test_a_call_is_a_span_with_its_parts(server: Running, collector: Collector) -> None:
    key, secret = server.service.accounts.keys.create("app", "acme")
    headers = {"authorization": f"Bearer {secret}", "traceparent": f"00-{TRACE}-{PARENT}-01"}
    url = f"{server.url}/v1/chat/completions"
    for stream in (False, True):
        assert (
            httpx.post(url, json={**CHAT, "stream": stream}, headers=headers, timeout=60).status_code == 200
        )
    spans = spans_of(server, collector, 2)
    assert set(collector.paths) == {"/v1/traces"}
    calls = [span for span in spans if span.name == "chat tiny"]
    rows = {row.request_id: row for row in page(server.service.accounts.database)}
    assert len(calls) == 2
    for span in calls:
        found = attributes(span)
        row = rows[found[names.GEN_AI_RESPONSE_ID]]
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
        assert found[names.GEN_AI_OPERATION_NAME] == names.GenAiOperationNameValues.CHAT.value
        assert found[names.GEN_AI_REQUEST_MODEL] == "tiny"
        assert found[names.GEN_AI_REQUEST_MAX_TOKENS] == 5
        assert found[names.GEN_AI_REQUEST_TOP_P] == 0.75
        assert found[names.GEN_AI_USAGE_INPUT_TOKENS] == row.prompt_tokens
        assert found[names.GEN_AI_USAGE_OUTPUT_TOKENS] == row.output_tokens == 5
        assert found[names.GEN_AI_RESPONSE_FINISH_REASONS] == ["length"]
        assert (found["puna.tenant"], found["puna.key_id"]) == ("acme", key.id)
        parts = [part for part in spans if part.parent_span_id == span.span_id]
        assert [part.name for part in parts] == ["queue", "prefill", "decode"]
        ends = [span.start_time_unix_nano]
        for part, seconds in zip(parts, (row.queue_s, row.prefill_s, row.decode_s), strict=True):
            assert part.start_time_unix_nano == ends[-1]
            assert part.end_time_unix_nano - part.start_time_unix_nano == pytest.approx(seconds * 1e9, abs=2)
            ends.append(part.end_time_unix_nano)
        assert ends[-1] <= span.end_time_unix_nano
        for text in (SECRET, secret):
            assert text not in str(span)


def test_the_callers_sampling_counts(server: Running, collector: Collector) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    url = f"{server.url}/v1/chat/completions"
    assert httpx.post(url, json=CHAT, headers=headers, timeout=60).status_code == 200
    assert httpx.post(url, json=CHAT, headers={"traceparent": "nonsense"}, timeout=60).status_code == 200
    calls = [span for span in spans_of(server, collector, 1) if span.name == "chat tiny"]
    assert len(calls) == 1
    assert calls[0].trace_id.hex() != TRACE
    assert not calls[0].parent_span_id


def test_an_answer_that_broke_off_is_an_error(
    server: Running, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(server, monkeypatch)
    slow.error = MemoryError("no more")
    assert server.post("/v1/chat/completions", CHAT).status_code == 500
    span = next(span for span in spans_of(server, collector, 1) if span.name == "chat tiny")
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert attributes(span)["error.type"] == "generation_failed"


def test_texts_are_sent_where_they_are_asked_for(start: Start, collector: Collector) -> None:
    server = start(ServerConfig(port=0, otel_endpoint=f"{collector.url}/v1/traces", otel_prompts=True))
    answer = server.post("/v1/chat/completions", CHAT).json()["choices"][0]["message"]["content"]
    span = next(span for span in spans_of(server, collector, 1) if span.name == "chat tiny")
    assert SECRET in attributes(span)["puna.prompts"][0]
    assert attributes(span)["puna.answers"] == [answer]


def test_what_traces_need(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadValue, match="otel_endpoint must be a URL like"):
        open_traces("localhost:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(BadInput, match=r"needs OpenTelemetry, .*; install puna\[otel\]"):
        open_traces("http://127.0.0.1:4318")
