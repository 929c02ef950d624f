"""OpenTelemetry traces (extra `otel`): a span for each call, its queue, prefill and decode within.

Names are those of the semantic conventions for generative AI; what those have no name for begins with
`puna.`. Spans are made when a call has ended, from what its row of the ledger says, so that no token waits
for them; a thread of the library sends them. A caller's trace goes on (W3C traceparent, and its sampling).
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import SplitResult, urlsplit

from puna.core import BadInput, BadValue, SamplingParams

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from puna.server.calls import Call
    from puna.server.errors import ApiError
    from puna.server.tenants.usage import Usage

HEADERS = ("traceparent", "tracestate")  # of a request, that say whose trace it belongs to
_PATH = "/v1/traces"  # of a collector that is named by its address alone
_TIMEOUT_S = 5  # to send spans
_OPERATIONS = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings"}


class Traces(Protocol):
    def ended(
        self, call: Call, usage: Usage, error: ApiError | None, texts: Mapping[str, list[str]]
    ) -> str | None:
        """A call has ended -> the id of its trace. `texts` are what the operator wants to see of it."""
        ...

    def close(self) -> None: ...  # send what waits; takes seconds where nobody listens


class NoTraces:
    def ended(
        self, call: Call, usage: Usage, error: ApiError | None, texts: Mapping[str, list[str]]
    ) -> str | None:
        return None

    def close(self) -> None: ...


def check_endpoint(endpoint: str) -> SplitResult:
    """Raises BadValue for what is no http or https URL."""
    with suppress(ValueError):  # of brackets that do not match, and of ports
        parts = urlsplit(endpoint)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    raise BadValue(f"otel_endpoint must be a URL like http://127.0.0.1:4318, got {endpoint!r}")


def require_packages() -> None:
    """Raises BadInput where one is missing."""
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401
    except ModuleNotFoundError as error:
        raise BadInput(
            f"otel_endpoint needs OpenTelemetry, whose package {error.name} is not installed; "
            "install puna[otel], or leave it out"
        ) from None


def open_traces(endpoint: str) -> Traces:
    """Traces to an OTLP collector over HTTP, or none for no endpoint.

    Raises what check_endpoint raises, and BadInput where the packages are missing.
    """
    if not endpoint:
        return NoTraces()
    parts = check_endpoint(endpoint)
    require_packages()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    url = endpoint if parts.path.strip("/") else endpoint.rstrip("/") + _PATH
    service = Resource({"service.name": "puna", "service.version": version("puna")})
    provider = TracerProvider(resource=service.merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=_TIMEOUT_S)))
    return OtelTraces(provider)


class OtelTraces:
    """Makes spans with `provider`, which it closes in the end."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("puna", version("puna"))
        self._propagator = TraceContextTextMapPropagator()

    def ended(
        self, call: Call, usage: Usage, error: ApiError | None, texts: Mapping[str, list[str]]
    ) -> str | None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, set_span_in_context

        operation = _OPERATIONS.get(usage.endpoint, usage.endpoint)
        began = time.time_ns() - int((time.perf_counter() - call.began_at) * 1e9)
        span = self._tracer.start_span(
            f"{operation} {usage.model}",
            context=self._propagator.extract(call.trace_headers),
            kind=SpanKind.SERVER,
            attributes={
                "gen_ai.operation.name": operation,
                **_request(call),
                **_response(usage),
                **{f"puna.{name}": value for name, value in texts.items()},
            },
            start_time=began,
        )
        if error is not None:
            span.set_attribute("error.type", error.code or error.kind)
            span.set_status(Status(StatusCode.ERROR))
        inside, at = set_span_in_context(span), began
        for name, seconds in (
            ("queue", usage.queue_s),
            ("prefill", usage.prefill_s),
            ("decode", usage.decode_s),
        ):
            part = self._tracer.start_span(name, context=inside, start_time=at)
            at += int(seconds * 1e9)
            part.end(at)
        span.end(max(at, time.time_ns()))
        return format_trace_id(span.get_span_context().trace_id)

    def close(self) -> None:
        self._provider.shutdown()


def _request(call: Call) -> dict[str, Any]:
    """What was asked for. Stop strings are text of the request, and left out."""
    params: SamplingParams = call.generations[0].request.params
    asked = {
        "gen_ai.provider.name": "puna",
        "gen_ai.request.model": call.model,
        "gen_ai.request.choice.count": len(call.generations),
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": float(params.temperature),
        "gen_ai.request.top_p": float(params.top_p),
        "gen_ai.request.top_k": float(params.top_k) if params.top_k else None,
        "gen_ai.request.frequency_penalty": float(params.frequency_penalty) or None,
        "gen_ai.request.presence_penalty": float(params.presence_penalty) or None,
    }
    return {name: value for name, value in asked.items() if value is not None}


def _response(usage: Usage) -> dict[str, Any]:
    found = {
        "gen_ai.response.id": usage.request_id,
        "gen_ai.response.model": usage.model,
        "gen_ai.response.finish_reasons": usage.finish_reason.split(","),
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
        "gen_ai.response.time_to_first_chunk": usage.queue_s + usage.prefill_s,
        "puna.status": usage.status,
        "puna.tenant": usage.tenant or None,
        "puna.key_id": usage.key_id,
        "puna.cost_usd": usage.cost_nano / 1e9,
    }
    return {name: value for name, value in found.items() if value is not None}
