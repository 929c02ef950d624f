"""GET /metrics, read by Prometheus' own parser and held against the engine, the ledger and the process."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server.conftest import Running, Start, open_accounts
from server.test_operations import until

from puna.bench.jobs import Limits, ModelCost
from puna.engine.stats import EngineStats
from puna.llm import speed
from puna.server import metrics
from puna.server.config import ServerConfig
from puna.server.figures import _NOW, _SUMS
from puna.server.rates import Rates
from puna.server.tenants.queries import totals

CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Hello " * 20}],
    "max_tokens": 12,
    "ignore_eos": True,
}


class Scrape:
    """What a server says of itself."""

    def __init__(self, server: Running, key: str | None = None) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        answer = httpx.get(f"{server.url}/metrics", headers=headers)
        assert answer.status_code == 200
        families = text_string_to_metric_families(answer.text)
        self.samples = [sample for family in families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float | None:
        """The one sample of this name with these labels."""
        found = [s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()]
        assert len(found) < 2
        return found[0] if found else None


LIMITS = Limits(read_gb_s=10.0, int8_tops=1.0, bf16_tflops=1.0)


def test_figures_are_those_of_engine_and_ledger(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_known", {(1, ""): LIMITS})
    for _ in range(2):
        assert server.post("/v1/chat/completions", CHAT).status_code == 200
    until(lambda: not server.llm.stats().running)
    found, stats = Scrape(server), server.llm.stats()
    assert found("puna_engine_tokens_total", model="tiny", kind="output") == stats.generated_tokens
    assert found("puna_engine_tokens_total", model="tiny", kind="prompt") == stats.prefill_tokens
    assert found("puna_engine_prefix_hit_tokens_total", model="tiny") == stats.prefix_hits
    assert found("puna_engine_steps_total", model="tiny") == stats.steps
    assert found("puna_engine_step_seconds_total", model="tiny") == stats.step_seconds
    assert found("puna_engine_cache_blocks", model="tiny") == stats.kv_blocks
    assert found("puna_model_loaded", model="tiny") == 1
    assert min(stats.generated_tokens, stats.prefill_tokens, stats.prefix_hits, stats.step_seconds) > 0
    sums = totals(server.service.accounts.database)[0]
    assert found("puna_output_tokens_total", model="tiny") == sums.output_tokens
    assert found("puna_prompt_tokens_total", model="tiny") == sums.prompt_tokens
    assert found("puna_requests_in_flight") == 0
    pages = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert found("process_resident_memory_bytes") == pytest.approx(pages, rel=0.2)
    until(lambda: (Scrape(server)("puna_engine_limit_seconds_total", model="tiny") or 0) > 0)


def test_every_figure_of_the_engine_is_told() -> None:
    told = [field for table in (_NOW, _SUMS) for columns in table.values() for field in columns.values()]
    assert sorted(told) == sorted(field.name for field in fields(EngineStats))


def test_metrics_need_an_admin_where_keys_are_required(
    start: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    accounts = open_accounts(tmp_path_factory.mktemp("ledger"), requires_keys=True)
    server = start(ServerConfig(port=0), accounts)
    admin = accounts.keys.create("operator", "house", scopes=["admin"])[1]
    app = accounts.keys.create("app", "acme")[1]
    assert httpx.get(f"{server.url}/metrics").status_code == 401
    headers = {"authorization": f"Bearer {app}"}
    assert httpx.get(f"{server.url}/metrics", headers=headers).status_code == 403
    assert Scrape(server, admin)("puna_ledger_writable") == 1
    for path in ("/health", "/ready"):
        assert httpx.get(server.url + path).status_code == 200


def test_tenants_are_few_in_metrics(
    start: Start, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MOST_TENANTS", 2)
    accounts = open_accounts(tmp_path_factory.mktemp("ledger"))
    server = start(ServerConfig(port=0), accounts)
    for tenant in ("a", "b", "c", "d", "a"):
        key = accounts.keys.create("app", tenant)[1]
        headers = {"authorization": f"Bearer {key}"}
        url = f"{server.url}/v1/chat/completions"
        assert httpx.post(url, json=CHAT, headers=headers, timeout=60).status_code == 200
    requests = [sample for sample in Scrape(server).samples if sample.name == "puna_requests_total"]
    counted = {sample.labels["tenant"]: sample.value for sample in requests}
    assert counted == {"a": 2, "b": 1, metrics.OTHERS: 2}


def test_the_share_of_the_limit_is_that_of_the_weights_read(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: a gigabyte of weights at 10 GB/s is 0.1 s a step, and multiplying takes less."""
    monkeypatch.setattr(speed, "_known", {(2, ""): LIMITS})
    cost = ModelCost(10**9, 10**9, 0, 0, False, 0, 0)
    assert speed.Speed(cost, 1).least_seconds(5, 5, 5) is None  # not measured on one thread
    assert speed.Speed(None, 2).least_seconds(5, 5, 5) is None  # a device that nobody knows
    known = speed.Speed(cost, 2)
    assert known.least_seconds(0, 0, 0) == 0
    assert known.least_seconds(5, 5, 5) == pytest.approx(0.5)
    assert known.least_seconds(1, 1000, 1) == pytest.approx(2.0)  # a prompt: 2e12 operations
    now = [0.0]
    rates = Rates(server.service.models, clock=lambda: now[0])
    rates.look()
    before = server.llm.stats()
    answer = server.llm.generate("Hello", max_tokens=10, ignore_end=True)
    now[0] = 2.0
    rates.look()
    after, rate = server.llm.stats(), rates.rate("tiny")
    assert rate.output == len(answer.token_ids) / 2
    assert rate.prompt == (after.prefill_tokens - before.prefill_tokens) / 2
    assert rates.history("tiny") == [rate.output]
    worked = after.step_seconds - before.step_seconds
    assert rate.busy == pytest.approx(worked / 2)
    assert rates.rate("nobody").output == 0


def test_limits_are_measured_on_this_machine(server: Running) -> None:
    server.llm.speed.measure()
    until(lambda: server.llm.speed.limits is not None)
    assert server.llm.speed.limits is not None
    assert min(server.llm.speed.limits.read_gb_s, server.llm.speed.limits.int8_tops) > 0
    least = server.llm.speed.least_seconds(1, 1, 1)
    assert least is not None
    assert least > 0
