"""The 22 worked cases of the economics of Llamas: figures of cards, papers and benchmarks."""

from __future__ import annotations

import pytest

from puna.economics.calibrate import Measured, measured, shipped_factor
from puna.economics.hardware import Ownership, chip, chips, data_text, load_json
from puna.economics.roofline import Deployment, bound, peak
from puna.economics.serving import usd_per_mtok
from puna.economics.training import (
    Run,
    attention_share,
    days_between,
    find_run,
    reported,
    totals,
    weight_flops,
)
from puna.model import catalog
from puna.model.sizes import kv_bytes, n_active


def rows(model: str, accelerator: str, prompt: int | None = 1000, output: int | None = 1000) -> Measured:
    found = [
        r
        for r in measured()
        if (r.model, r.accelerator, r.prompt, r.output) == (model, accelerator, prompt, output)
    ]
    assert len(found) == 1
    return found[0]


def test_case_1_operations_of_405b() -> None:
    assert weight_flops(405e9, 15.6e12) == pytest.approx(3.79e25, rel=0.01)
    active = n_active(catalog.find("llama-3.1-405b").config)
    assert weight_flops(active, 15.6e12) == pytest.approx(3.8e25, rel=0.01)


def test_cases_2_and_3_405b_on_its_machines() -> None:
    run = find_run("llama-3.1-405b")
    assert run.mfu == pytest.approx(0.345, abs=0.01)
    plan = Run(405e9, 15.6e12, chip("h100"), 16384, 400 / 989)
    assert plan.days == pytest.approx(66.9, rel=0.01)
    assert days_between(run.hours, 16384) == pytest.approx(78.4, rel=0.01)


@pytest.mark.parametrize(
    ("model", "flops", "tflops", "mfu", "tolerance"),
    [
        ("llama-3.1-70b", 6.35e24, 252, 0.255, 0.02),  # 4
        ("llama-3.1-8b", 7.2e23, 138, 0.139, 0.02),  # 5
        ("llama-2-70b", 8.3e23, None, 0.429, 0.02),  # 6
        ("llama-1-13b", 7.8e22, None, 0.514, 0.01),  # 7
        ("llama-4-scout", 4.08e24, 227, None, 0.02),  # 8
        ("llama-4-maverick", 2.24e24, 262, None, 0.02),  # 9
        ("llama-4-behemoth", 5.18e25, 390, 0.197, 0.02),  # 10
    ],
)
def test_cases_4_to_10_runs(
    model: str, flops: float, tflops: float | None, mfu: float | None, tolerance: float
) -> None:
    run = find_run(model)
    assert run.flops == pytest.approx(flops, rel=tolerance)
    assert tflops is None or run.achieved_tflops == pytest.approx(tflops, rel=tolerance)
    assert mfu is None or run.mfu == pytest.approx(mfu, rel=tolerance)
    entry = catalog.get(model)  # what the card says of the model is what its shape says
    assert entry is None or n_active(entry.config) == pytest.approx(run.active, rel=0.02)


def test_case_10_behemoth_takes_48_days() -> None:
    run = find_run("llama-4-behemoth")
    assert run.hours == pytest.approx(36.9e6, rel=0.02)
    assert days_between(run.hours, 32000) == pytest.approx(48, rel=0.02)


def test_case_11_energy_and_emissions() -> None:
    run = find_run("llama-3.1-405b")
    assert run.mwh == pytest.approx(21_588, rel=0.01)
    assert run.tonnes_per_mwh == pytest.approx(0.414, rel=0.01)
    stated = {
        row["name"]: row["tonnes_per_mwh"] for row in load_json(data_text("training.json"), "")["intensity"]
    }
    assert stated == {"llama-4": 0.387, "llama-2-70b": 0.4235}


def test_case_12_hours_of_releases() -> None:
    hours = {name: total.hours for name, total in totals().items()}
    assert hours["llama-3.1"] == pytest.approx(39.3e6)
    parts = ("llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b")
    assert sum(find_run(name).hours for name in parts) == pytest.approx(hours["llama-3.1"], rel=0.01)
    parts = ("llama-4-scout", "llama-4-maverick")
    assert sum(find_run(name).hours for name in parts) == pytest.approx(7.38e6, rel=0.01)
    assert hours["llama-4"] == 7.38e6
    assert hours["llama-2"] == 3_311_616
    assert (hours["llama-3.2 text"], hours["llama-3.2 text, logits for distillation"]) == (833e3, 86e3)
    assert hours["llama-3.2 vision"] == 2.02e6


def test_case_13_one_stream() -> None:
    alone = [row for row in measured() if row.kind == "one stream"]
    assert [row.output_tok_s for row in alone] == [67, 128, 68]
    assert [row.efficiency for row in alone] == pytest.approx([0.88, 0.84, 0.87], abs=0.05)


def test_case_14_70b_on_two_h100() -> None:
    row = rows("llama-3.3-70b-instruct", "h100")
    assert (row.output_tok_s, row.n) == (4205, 2)
    assert row.efficiency == pytest.approx(0.31, abs=0.02)
    assert usd_per_mtok(4205, 2.95, 2) == pytest.approx(0.39, abs=0.005)
    assert usd_per_mtok(4205, chip("h100").rate("own"), 2) == pytest.approx(0.17, abs=0.005)


def test_cases_15_to_19_measured_rows() -> None:
    model = "llama-3.3-70b-instruct"
    lengths = ((2048, 128), (128, 2048), (20000, 2000))
    assert [rows(model, "h100", *n).output_tok_s for n in lengths] == [762, 6651, 437]  # 15
    assert rows(model, "h200").output_tok_s == 2909  # 16
    assert usd_per_mtok(rows(model, "b200").output_tok_s, 1.95) == pytest.approx(0.077, abs=0.0005)
    expected = {  # 17, 18, 19: tokens/s and share of the bound
        ("llama-3.1-8b-instruct", "h100"): (15220, 0.50),
        ("llama-3.1-8b-instruct", "h200"): (17744, 0.39),
        ("llama-3.1-405b-instruct", "h100"): (2919, 0.30),
        ("llama-3.1-405b-instruct", "h200"): (3330, 0.34),
        ("llama-4-maverick-instruct", "h200"): (31782, 0.20),
        ("llama-4-maverick-instruct", "h100"): (9677, 0.17),
        ("llama-4-scout-instruct", "h100"): (12129, 0.21),
    }
    for (name, accelerator), (tok_s, efficiency) in expected.items():
        row = rows(name, accelerator)
        assert row.output_tok_s == tok_s
        assert row.efficiency == pytest.approx(efficiency, abs=0.01)


def test_case_20_order_of_accelerators() -> None:
    costs = load_json(data_text("measured.json"), "")["costs"]
    dollars = {row["accelerator"]: row["usd_per_mtok"] for row in costs}
    assert sorted(dollars, key=dollars.__getitem__) == ["h100", "mi300x", "tpu-v6e"]
    config = catalog.find("llama-3.3-70b-instruct").config
    for name, usd in dollars.items():  # the bound is cheaper than what was measured, even on demand
        d = Deployment(config, chip(name), 8, "bf16", "bf16", 1000, 0, 1000)
        assert usd_per_mtok(bound(d).total_tok_s, chip(name).rate("rent"), 8) < usd


def test_case_21_per_accelerator() -> None:
    unstated = [r.output_tok_s / r.n for r in measured() if r.prompt is None]
    assert unstated == pytest.approx([12_900, 18_400, 12_000], rel=0.01)


@pytest.mark.parametrize("row", measured(), ids=lambda r: f"{r.model}-{r.accelerator}-{r.prompt}-{r.output}")
def test_case_22_the_roofline_is_never_below_a_measured_row(row: Measured) -> None:
    assert 0 < row.efficiency < 1


def test_factors_at_a_thousand_tokens_are_those_of_the_survey() -> None:
    assert shipped_factor("one stream").mean == pytest.approx(0.85, abs=0.02)
    at = {
        kind: [r.efficiency for r in measured() if r.kind == kind and r.prompt == r.output == 1000]
        for kind in ("dense", "experts")
    }
    assert min(at["dense"]) > 0.15
    assert max(at["dense"]) == pytest.approx(0.50, abs=0.01)
    for kind, found in at.items():
        assert shipped_factor(kind).low <= min(found) <= max(found) <= shipped_factor(kind).high


def test_formulas_beside_the_cases() -> None:
    for model, extra in (("llama-3.1-405b", 0.042), ("llama-3.1-70b", 0.076), ("llama-3.1-8b", 0.134)):
        config = catalog.find(model).config
        assert attention_share(config, 8192, n_active(config)) == pytest.approx(extra, abs=0.001)
    caches = {
        "llama-3.1-8b": 131072,
        "llama-3.1-70b": 327680,
        "llama-3.1-405b": 516096,
        "llama-4-scout": 196608,
    }
    for model, each in caches.items():
        assert kv_bytes(catalog.find(model).config, 1) == each
    h100 = chip("h100")
    for weights, n_bytes in (("bf16", 2), ("fp8", 1)):
        operations = peak(h100, weights)
        assert operations is not None
        assert operations * n_bytes / (2 * h100.need("bandwidth_tb_s") * 1e12) == pytest.approx(295, abs=1)
    own = Ownership(30_000, years=4, interest=0.10, kw=1.73, usd_per_kwh=0.087)
    assert own.usd_h == pytest.approx(1.23, abs=0.005)


def test_every_cell_and_row_has_a_dated_source() -> None:
    assert all(cell.source.title for c in chips().values() for cell in c.cells.values())
    assert all(row.source.title for row in measured())
    assert all(run.source.title for run in reported().values())
