"""Arithmetic of the shares, against counting by hand."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest

from puna.bench.jobs import QUICK, BenchConfig, Job, Limits, ModelCost, Work, cost_of, decode_at, jobs_of
from puna.core import BadValue
from puna.model import catalog
from puna.model.config import ExpertsConfig, ModelConfig, QueryTemperature
from puna.model.names import shapes
from puna.weights.synthetic import synthetic_checkpoint

COST = ModelCost(
    weight_bytes=1000,
    int8_macs=400,
    float_macs=0,
    head_macs=100,
    head_is_float=False,
    cache_bytes=8,
    attention_macs=6,
)
UNTIED = ModelConfig(64, 2, 4, 2, 32, 96, 256, 1e-5, 1e4, context_length=128, tied=False)


def test_prefill_multiplies_every_token_and_one_row_of_logits() -> None:
    work = COST.work(Job("prefill", 5))
    assert work == Work(1000, 5 * 400 + 100 + 6 * (1 + 2 + 3 + 4 + 5), 0)


def test_decode_reads_weights_and_cache_every_step() -> None:
    work = COST.work(decode_at(512, 3))
    # The first timed token is at position 512 and looks at 513.
    assert work == Work(3 * 1000 + 8 * (513 + 514 + 515), 3 * 500 + 6 * (513 + 514 + 515), 0)


def test_a_batch_reads_the_weights_once_for_all() -> None:
    work = COST.work(decode_at(0, 2, streams=4))
    assert work == Work(2 * 1000 + 4 * 8 * (2 + 3), 2 * 4 * 500 + 4 * 6 * (2 + 3), 0)


def test_serving_is_prefill_and_all_steps_after_the_first_token() -> None:
    prefill = COST.work(Job("prefill", 10, streams=2))
    work = COST.work(Job("serve", 10, 3, streams=2))
    assert work.read_bytes == prefill.read_bytes + 2 * 1000 + 2 * 8 * (10 + 11)
    assert work.int8_macs == prefill.int8_macs + 2 * 2 * 500 + 2 * 6 * (10 + 11)


def test_seconds_at_the_limit() -> None:
    limits = Limits(read_gb_s=50, int8_tops=2, bf16_tflops=0.5)
    work = Work(read_bytes=1e9, int8_macs=10**12, float_macs=10**11)
    assert work.read_seconds(limits) == pytest.approx(0.02)
    assert work.multiply_seconds(limits) == pytest.approx(1 + 0.4)


@pytest.mark.parametrize("config", [UNTIED, catalog.find("smollm2").config], ids=["untied", "tied"])
def test_cost_of_a_checkpoint(config: ModelConfig) -> None:
    cost = cost_of(synthetic_checkpoint(config, "q4_1"), "bf16")
    matrices = sum(prod(shape) for name, shape in shapes(config) if len(shape) == 2 and "layers" in name)
    assert cost.int8_macs == matrices
    assert cost.head_macs == config.vocab_size * config.dim
    assert cost.cache_bytes == 2 * 2 * config.n_layers * config.n_kv_heads * config.head_dim
    total = synthetic_checkpoint(config, "q4_1").n_bytes
    table = 0 if config.tied else config.vocab_size * config.dim * 20 // 32  # Q4_1; looked up, not read
    assert cost.weight_bytes == total - table


SPARSE = replace(
    UNTIED, n_layers=4, experts=ExpertsConfig(4, 1, 96, 96, every=2), attention_chunk=8192, no_rope_every=4,
    qk_norm=True, query_temperature=QueryTemperature(),
)  # fmt: skip


def test_of_experts_the_chosen_ones_count() -> None:
    cost = cost_of(synthetic_checkpoint(SPARSE, "q8_0"), "bf16")
    expert = 3 * 64 * 96  # numbers of one expert's three matrices; layers 1 and 3 have experts
    assert cost.expert_bytes == 2 * expert * 34 // 32
    everything = synthetic_checkpoint(SPARSE, "q8_0").n_bytes
    assert cost.weight_bytes == everything - 4 * cost.expert_bytes - 256 * 64 * 34 // 32
    matrices = sum(prod(s) for name, s in shapes(SPARSE) if len(s) == 2 and "layers" in name)
    assert cost.int8_macs + cost.float_macs == matrices + 2 * expert
    one, two, many = (cost.work(decode_at(0, 1, n)).read_bytes - cost.weight_bytes for n in (1, 2, 100))
    cache = cost.cache_bytes * 2  # positions that the first timed token looks at
    assert one == pytest.approx(cost.expert_bytes + cache)
    assert two == pytest.approx((1 + 3 / 4) * cost.expert_bytes + 2 * cache)
    assert many == pytest.approx(4 * cost.expert_bytes + 100 * cache, rel=1e-6)


def test_floats_are_held_to_the_float_peak() -> None:
    cost = cost_of(synthetic_checkpoint(UNTIED, "bf16"), "f32")
    work = cost.work(Job("prefill", 7))
    assert work.int8_macs == 0
    assert work.float_macs > 0
    assert cost.cache_bytes == 2 * 4 * 2 * 2 * 32


def test_jobs_of_the_default_and_the_quick_run() -> None:
    names = [job.name for job in jobs_of(BenchConfig(streams=32))]
    assert names == [
        "prefill 512", "prefill 4,096", "decode at 0", "decode at 512", "decode at 4,096",
        "decode, batch of 4", "decode, batch of 8", "decode, batch of 16", "32 requests, 128 in, 128 out",
    ]  # fmt: skip
    assert {job.name for job in jobs_of(QUICK)} < set(names)


def test_sizes_must_make_sense() -> None:
    with pytest.raises(BadValue, match="rounds must be 1 or more, got 0"):
        BenchConfig(rounds=0)
