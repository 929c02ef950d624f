"""Metrics that are read when they are asked for: engines, models, the ledger, this process."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from puna.engine.stats import EngineStats

if TYPE_CHECKING:
    from puna.server.service import Service

# name and help of a figure -> the fields of EngineStats that it comes from, by the value of its label
_NOW = {
    ("puna_engine_sequences", "Sequences of an engine", "state"): {
        "running": "running",
        "waiting": "waiting",
    },
    ("puna_engine_waiting_tenants", "Tenants that have requests waiting", ""): {"": "waiting_tenants"},
    ("puna_engine_batch_sequences", "Sequences in the last step", ""): {"": "last_step_sequences"},
    ("puna_engine_batch_tokens", "Tokens in the last step", ""): {"": "last_step_tokens"},
    ("puna_engine_cache_blocks", "Blocks of the key/value cache", ""): {"": "kv_blocks"},
    ("puna_engine_cache_blocks_used", "Cache blocks that running sequences hold", ""): {"": "kv_blocks_used"},
    ("puna_engine_cache_blocks_cached", "Free cache blocks that an equal prefix would find", ""): {
        "": "kv_blocks_cached"
    },
    ("puna_engine_cache_block_tokens", "Positions of a cache block", ""): {"": "kv_block_tokens"},
    ("puna_engine_mask_cost_seconds", "Time of a grammar's mask, since the model was loaded", "quantile"): {
        "0.5": "mask_median",
        "0.99": "mask_p99",
    },
}
_SUMS = {
    ("puna_engine_steps", "Steps", ""): {"": "steps"},
    ("puna_engine_failed_steps", "Steps that failed", ""): {"": "failed_steps"},
    ("puna_engine_step_seconds", "Time that steps took", ""): {"": "step_seconds"},
    ("puna_engine_step_sequences", "Sequences in steps, summed: over steps, the mean batch", ""): {
        "": "step_sequences"
    },
    ("puna_engine_step_tokens", "Tokens in steps, guesses too", ""): {"": "step_tokens"},
    ("puna_engine_tokens", "Tokens of prompts computed, and of answers chosen", "kind"): {
        "prompt": "prefill_tokens",
        "output": "generated_tokens",
    },
    ("puna_engine_preemptions", "Sequences put back for want of cache", ""): {"": "preemptions"},
    ("puna_engine_prefix_queried_tokens", "Prompt tokens looked up in the prefix cache", ""): {
        "": "prefix_queries"
    },
    ("puna_engine_prefix_hit_tokens", "Of them, those found", ""): {"": "prefix_hits"},
    ("puna_engine_guessed_tokens", "Tokens guessed ahead", ""): {"": "proposed_tokens"},
    ("puna_engine_accepted_tokens", "Of them, those that were right", ""): {"": "accepted_tokens"},
    ("puna_engine_masks", "Masks of grammars, one a token", ""): {"": "masks"},
    ("puna_engine_mask_seconds", "Time beside steps that masks took", ""): {"": "mask_seconds"},
    ("puna_engine_mask_waited_seconds", "Time that steps waited for masks", ""): {"": "mask_waited_seconds"},
}


class Figures(Collector):
    """Of one server. Nothing is kept: each scrape reads what is."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "puna_build", "This server", {"version": version("puna"), "python": platform.python_version()}
        )
        yield from self._server()
        yield from self._models()
        yield from self._engines()
        yield from self._limits()

    def _server(self) -> Iterable[Metric]:
        service, ledger = self._service, self._service.accounts.ledger
        return (
            GaugeMetricFamily("puna_requests_in_flight", "Calls being answered", service.n_in_flight),
            GaugeMetricFamily("puna_draining", "1 while no more calls are taken", int(service.is_draining)),
            GaugeMetricFamily(
                "puna_ledger_writable", "0 while no call can be recorded", int(ledger.is_writable)
            ),
            GaugeMetricFamily(
                "puna_ledger_journal_rows", "Rows that wait for the database", ledger.n_journaled
            ),
        )

    def _models(self) -> Iterable[Metric]:
        info = GaugeMetricFamily("puna_model_loaded", "1 for models in memory", labels=("model",))
        size = GaugeMetricFamily("puna_model_file_bytes", "Size of a model's file", labels=("model",))
        context = GaugeMetricFamily(
            "puna_model_context_tokens", "Tokens of a prompt and its answer", labels=("model",)
        )
        for card in self._service.models.cards():
            info.add_metric((card.name,), int(card.state == "loaded"))
            size.add_metric((card.name,), card.size)
            if card.context is not None:
                context.add_metric((card.name,), card.context)
        return info, size, context

    def _engines(self) -> Iterator[Metric]:
        stats = {name: model.stats() for name, model in self._service.models.loaded().items()}
        for make, table in ((GaugeMetricFamily, _NOW), (CounterMetricFamily, _SUMS)):
            for (name, text, label), columns in table.items():
                family = make(name, text, labels=("model", label) if label else ("model",))
                for model, found in stats.items():
                    _add(family, model, found, columns)
                yield family

    def _limits(self) -> Iterable[Metric]:
        rates = self._service.rates
        seconds = CounterMetricFamily(
            "puna_engine_limit_seconds",
            "Time that the steps would have taken at the machine's measured limit; over the time that they "
            "took, the share of the limit",
            labels=("model",),
        )
        share = GaugeMetricFamily(
            "puna_engine_limit_ratio", "Share of the limit over the last ten seconds", labels=("model",)
        )
        output = GaugeMetricFamily(
            "puna_engine_output_tokens_per_second", "Over the last ten seconds", labels=("model",)
        )
        for name in self._service.models.loaded():
            least, rate = rates.least_s(name), rates.rate(name)
            output.add_metric((name,), rate.output)
            if least is not None:
                seconds.add_metric((name,), least)
            if rate.of_limit is not None:
                share.add_metric((name,), rate.of_limit)
        return seconds, share, output


def _add(
    family: GaugeMetricFamily | CounterMetricFamily, model: str, stats: EngineStats, columns: dict[str, str]
) -> None:
    for value, field in columns.items():
        family.add_metric((model, value) if value else (model,), float(getattr(stats, field)))
