"""Figures of classifiers against scikit-learn's, their intervals against many drawn sets, and bad files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from puna.core import BadFile, BadValue
from puna.safety.evaluate import Answers, Case, read_cases, report
from puna.safety.evaluate.scores import METRICS, average_precision, best_threshold, metrics, resamples
from puna.safety.verdict import Verdict

rows = st.lists(
    st.tuples(
        st.booleans(), st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), st.integers(0, 3)
    ),
    min_size=2,
    max_size=40,
)


def columns(made: Sequence[tuple[bool, bool, float, int]]) -> tuple[Any, Any, Any, Any]:
    y, said, score, weight = map(np.array, zip(*made, strict=True))
    return y, said, score, weight.astype(float)


@given(rows)
def test_figures_are_scikit_learns(made: list[tuple[bool, bool, float, int]]) -> None:
    """Of any labels, answers and scores with ties, and of any resample as weights."""
    y, said, score, weight = columns(made)
    ones = np.ones(len(y))
    found = metrics(y, said, score, np.stack([ones, weight]))
    for b, w in enumerate([ones, weight]):
        n_unsafe, n_safe, n_said = (w * y).sum(), (w * ~y).sum(), (w * said).sum()
        one = {name: float(found[name][b]) for name in METRICS}
        if n_unsafe:
            assert one["recall"] == pytest.approx(sk.recall_score(y, said, sample_weight=w))
            assert one["f1"] == pytest.approx(sk.f1_score(y, said, sample_weight=w, zero_division=0))
            assert one["auprc"] == pytest.approx(sk.average_precision_score(y, score, sample_weight=w))
        if n_said:
            assert one["precision"] == pytest.approx(
                sk.precision_score(y, said, sample_weight=w, zero_division=0)
            )
        if n_safe:
            table = sk.confusion_matrix(y, said, labels=[False, True], sample_weight=w)
            assert one["fpr"] == pytest.approx(table[0, 1] / table[0].sum())
        undefined = [not n_said, not n_unsafe, not n_unsafe, not n_safe, not n_unsafe]
        assert [bool(np.isnan(one[name])) for name in METRICS] == undefined


@given(rows)
def test_no_other_threshold_is_better(made: list[tuple[bool, bool, float, int]]) -> None:
    y, _, score, _ = columns(made)
    if not y.any():
        return
    best, f1 = best_threshold(y, score)
    of = {t: sk.f1_score(y, score >= t, zero_division=0) for t in score}
    assert f1 == pytest.approx(max(of.values()))
    assert of[best] == pytest.approx(f1)


def test_a_worked_average_precision() -> None:
    """The example of scikit-learn's documentation of average_precision_score."""
    y, score = np.array([False, False, True, True]), np.array([0.1, 0.4, 0.35, 0.8])
    assert average_precision(y, score, np.ones((1, 4)))[0] == pytest.approx(0.8333333333)


def test_resamples_keep_how_many_are_unsafe_and_follow_the_seed() -> None:
    y = np.arange(50) < 7
    drawn = resamples(y, 200, 3)
    assert (drawn[:, y].sum(1) == 7).all()
    assert (drawn[:, ~y].sum(1) == 43).all()
    assert (drawn == resamples(y, 200, 3)).all()
    assert (drawn != resamples(y, 200, 4)).any()
    assert drawn.mean() == pytest.approx(1)


def drawn_set(rng: np.random.Generator, n: int) -> tuple[list[Case], list[Verdict], list[Verdict]]:
    """Cases, a judge of which recall and false-positive rate are known (0.8, 0.1), and a worse one."""
    cases, good, worse = [], [], []
    for i in range(n):
        is_unsafe = i % 2 == 0
        cases.append(
            Case((("user", "x"),), is_unsafe, i + 1, group="ab"[i % 3 == 0], category="c" * is_unsafe)
        )
        u = rng.random()
        good.append(
            Verdict(u < (0.8 if is_unsafe else 0.1), float(rng.beta(4, 2) if is_unsafe else rng.beta(2, 4)))
        )
        worse.append(Verdict(u < (0.7 if is_unsafe else 0.1), float(rng.random())))
    return cases, good, worse


def test_intervals_have_the_truth_as_often_as_they_say() -> None:
    """100 sets of which the true figures are known: 95 % of the intervals hold them, within chance; and the
    true difference of two judges lies in the paired one."""
    rng, n = np.random.default_rng(1), 100
    hits = dict.fromkeys(("recall", "fpr", "difference"), 0)
    for i in range(n):
        cases, good, worse = drawn_set(rng, 120)
        made = report(cases, [Answers("good", good), Answers("worse", worse)], n_resamples=300, seed=i)
        one, difference = made["classifiers"][0], made["differences"][0]["recall"]
        hits["recall"] += one["recall"]["low"] <= 0.8 <= one["recall"]["high"]
        hits["fpr"] += one["fpr"]["low"] <= 0.1 <= one["fpr"]["high"]
        hits["difference"] += difference["low"] <= -0.1 <= difference["high"]
    assert all(0.88 <= hit / n <= 1 for hit in hits.values()), hits


def test_a_paired_interval_is_narrower_than_those_of_both() -> None:
    cases, good, worse = drawn_set(np.random.default_rng(2), 400)
    made = report(cases, [Answers("good", good), Answers("worse", worse)], n_resamples=500)
    width = [
        one["recall"]["high"] - one["recall"]["low"] for one in (*made["classifiers"], *made["differences"])
    ]
    assert width[2] < min(width[:2])
    same = report(cases, [Answers("good", good), Answers("again", good)])["differences"][0]
    assert same["f1"] == {"value": 0, "low": 0, "high": 0}


def test_groups_categories_and_thresholds() -> None:
    cases, good, _ = drawn_set(np.random.default_rng(3), 60)
    made = report(cases, [Answers("x", good)], threshold=0.5)["classifiers"][0]
    flagged = [verdict.score >= 0.5 for verdict in good]
    for name in "ab":
        at = [i for i, case in enumerate(cases) if case.group == name]
        y, said = [cases[i].is_unsafe for i in at], [flagged[i] for i in at]
        assert made["groups"][name]["cases"] == len(at)
        assert made["groups"][name]["f1"]["value"] == pytest.approx(sk.f1_score(y, said))
    n_found = sum(f and c.is_unsafe for f, c in zip(flagged, cases, strict=True))
    assert made["categories"] == {"c": {"unsafe": 30, "flagged": n_found}}
    assert made["confusion"]["tp"] == n_found
    assert sum(made["confusion"].values()) == 60


def test_what_is_not_defined_has_no_figure() -> None:
    cases = [Case((("user", "x"),), i < 2, i, group="safe" * (i > 1)) for i in range(4)]
    silent = report(cases, [Answers("silent", [Verdict(False, 0.0)] * 4)])["classifiers"][0]
    assert silent["precision"] is None
    assert silent["recall"]["value"] == 0
    assert silent["auprc"]["value"] == 0.5  # the share of unsafe ones: all scores are one threshold
    assert silent["groups"]["safe"]["recall"] is None
    assert silent["groups"]["safe"]["fpr"]["value"] == 0
    for wrong, match in (
        ({"threshold": 1.5}, "threshold must be from 0 to 1"),
        ({"n_resamples": 5}, "needs from 100"),
    ):
        with pytest.raises(BadValue, match=match):
            report(cases, [Answers("silent", [Verdict(False, 0.0)] * 4)], **wrong)  # type: ignore[arg-type]
    with pytest.raises(BadValue, match="scores from 0 to 1"):
        report(cases, [Answers("odd", [Verdict(False, float("nan"))] * 4)])


def test_cases_are_read_from_both_kinds_of_file() -> None:
    lines = [
        {"text": "a\u2028b", "unsafe": True, "category": "hate", "source": "x"},
        {"text": "a", "answer": "b", "unsafe": False, "group": "g"},
        {
            "conversation": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "unsafe": 0,
        },
    ]
    made = read_cases("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n", "x.jsonl")
    assert [case.turns for case in made.cases] == [
        (("user", "a\u2028b"),), (("user", "a"), ("assistant", "b")), (("user", "a"), ("assistant", "b")),
    ]  # fmt: skip
    assert [case.is_unsafe for case in made.cases] == [True, False, False]
    assert made.ignored == ("source",)
    assert (made.cases[0].category, made.cases[1].group) == ("hate", "g")
    table = 'text,answer,unsafe,group\n"a\nb",,TRUE,x\nc,d,0,\n'
    made = read_cases(table, "x.CSV")
    assert [case.turns for case in made.cases] == [(("user", "a\nb"),), (("user", "c"), ("assistant", "d"))]
    assert [case.line for case in made.cases] == [3, 4]


GOOD = '{"text": "a", "unsafe": true}\n'


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "has no case at all"),
        (GOOD, "has only unsafe ones"),
        (GOOD + "{", r"x\.jsonl:2 must be a JSON object"),
        (GOOD + "[1]", r"x\.jsonl:2 must be a JSON object, found '\[1\]'"),
        (GOOD + "[" * 100_000, r"x\.jsonl:2 must be"),
        (GOOD + '{"text": "a"}', r"x\.jsonl:2: `unsafe` must be true or false, found none"),
        (GOOD + '{"text": "a", "unsafe": "maybe"}', "found 'maybe'"),
        (GOOD + '{"text": "a", "unsafe": 2}', "found 2"),
        (GOOD + '{"text": " ", "unsafe": false}', "must be texts"),
        (GOOD + '{"text": 5, "unsafe": false}', "must be texts"),
        (GOOD + '{"unsafe": false}', "either `text` or `conversation`, found unsafe"),
        (GOOD + '{"text": "a", "conversation": [], "unsafe": false}', "either `text` or `conversation`"),
        (GOOD + '{"conversation": [], "unsafe": false}', "must be a list of messages"),
        (
            GOOD + '{"conversation": [{"role": "assistant", "content": "a"}], "unsafe": false}',
            "message 1 of the",
        ),
        (GOOD + '{"conversation": [{"role": "user"}], "unsafe": false}', "message 1 of the"),
        (GOOD + '{"text": "a", "unsafe": false, "group": 5}', "must be names"),
    ],
)
def test_bad_lines_are_told_with_their_number(text: str, match: str) -> None:
    with pytest.raises(BadFile, match=match):
        read_cases(text, "x.jsonl")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("text,unsafe\na,1,b\n", r"x\.csv:2: a row must have a cell for each of the 2"),
        ("text,unsafe\na\n", "a row must have a cell"),
        ("conversation,unsafe\na,1\n", "do not fit into CSV"),
        ('text,unsafe\n"a,1\n', "must"),
        ("text\na\n", "`unsafe` must be"),
    ],
)
def test_bad_tables_are_told(text: str, match: str) -> None:
    with pytest.raises(BadFile, match=match):
        read_cases(text, "x.csv")
