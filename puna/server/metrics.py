"""Prometheus metrics, named by its conventions: base units, totals, and labels of few values."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.registry import Collector

from puna.server.generation import Generation
from puna.server.tenants.usage import Usage

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_EACH = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.04, 0.05, 0.075, 0.1, 0.25, 0.5, 1)
_WHOLE = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
MOST_TENANTS = 500  # with a name of their own, in the order in which they come
OTHERS = "(others)"  # the ledger has each


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        who = ("model", "tenant")
        self.requests = Counter(
            "puna_requests", "Calls by how they ended", (*who, "endpoint", "status"), registry=registry
        )
        self.rejected = Counter(
            "puna_rejected", "Requests refused before the engine", ("status", "code"), registry=registry
        )
        self.prompt_tokens = Counter("puna_prompt_tokens", "Tokens of prompts", who, registry=registry)
        self.cached_tokens = Counter(
            "puna_cached_prompt_tokens", "Prompt tokens found in the prefix cache", who, registry=registry
        )
        self.output_tokens = Counter("puna_output_tokens", "Tokens of answers", who, registry=registry)
        self.first = Histogram(
            "puna_time_to_first_token_seconds",
            "From admission to the first token",
            ("model",),
            buckets=_FIRST,
            registry=registry,
        )
        self.each = Histogram(
            "puna_time_per_output_token_seconds",
            "Mean time between tokens of an answer",
            ("model",),
            buckets=_EACH,
            registry=registry,
        )
        self.queue = Histogram(
            "puna_queue_seconds", "Time before the first step", ("model",), buckets=_FIRST, registry=registry
        )
        self.whole = Histogram(
            "puna_request_seconds", "From admission to the end", ("model",), buckets=_WHOLE, registry=registry
        )
        self.safety = Counter(
            "puna_safety_checked",
            "Calls by what their safety checks came to",
            ("policy", "action"),
            registry=registry,
        )
        self.judging = Histogram(
            "puna_safety_seconds", "Of all verdicts of a call", ("policy",), buckets=_FIRST, registry=registry
        )
        ProcessCollector(registry=registry)
        self._tenants: set[str] = set()

    def add(self, figures: Collector) -> None:
        """Metrics that are read when they are asked for."""
        self.registry.register(figures)

    def _label(self, tenant: str) -> str:
        """A tenant by name, while there are few: each is a time series of its own in many metrics."""
        if tenant not in self._tenants:
            if len(self._tenants) >= MOST_TENANTS:
                return OTHERS
            self._tenants.add(tenant)
        return tenant

    def count(self, usage: Usage, generations: Sequence[Generation]) -> None:
        """A call has ended."""
        who = (usage.model, self._label(usage.tenant))
        self.requests.labels(*who, usage.endpoint, usage.status).inc()
        self.prompt_tokens.labels(*who).inc(usage.prompt_tokens)
        self.cached_tokens.labels(*who).inc(usage.cached_tokens)
        self.output_tokens.labels(*who).inc(usage.output_tokens)
        self.queue.labels(usage.model).observe(usage.queue_s)
        self.whole.labels(usage.model).observe(usage.queue_s + usage.prefill_s + usage.decode_s)
        if usage.audit is not None:
            self.safety.labels(usage.audit.policy, usage.audit.action).inc()
            self.judging.labels(usage.audit.policy).observe(usage.audit.judge_s)
        for generation in generations:
            first, last, n = generation.first_at, generation.last_at, generation.n_output
            if first is not None and last is not None:
                self.first.labels(usage.model).observe(first - generation.began_at)
                if n > 1:
                    self.each.labels(usage.model).observe((last - first) / (n - 1))

    def text(self) -> bytes:
        return generate_latest(self.registry)
