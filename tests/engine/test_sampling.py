from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from engine import slow_engine

from puna.core import SamplingParams
from puna.engine import sampling
from puna.engine.sampling import Sampler, SamplingState, largest_ids, uniform

GOLDEN = Path(__file__).parents[1] / "golden" / "sampling.npz"


def choose_at(
    u: float, sampler: Sampler, row_V: np.ndarray, state: SamplingState, monkeypatch: pytest.MonkeyPatch
) -> int:
    monkeypatch.setattr(sampling, "uniform", lambda seed, position: u)
    return sampler.choose(row_V, state, 0)


def golden_cases() -> list[tuple[np.ndarray, np.ndarray, SamplingParams, np.ndarray]]:
    data = np.load(GOLDEN)
    params = [SamplingParams(**options) for options in json.loads(str(data["params"]))]
    rows = data["row_C"]
    return [
        (data["logits_RV"][row], data["tokens_RS"][row], p, probabilities_V)
        for row, p, probabilities_V in zip(rows, params, data["probabilities_CV"], strict=True)
    ]


def test_keeps_what_transformers_keeps_with_the_same_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    for row_V, seen, p, probabilities_V in golden_cases():
        sampler, state = Sampler(len(row_V)), SamplingState(p, seen.tolist(), [], seed=0)
        ends_V = np.cumsum(probabilities_V)
        for token in np.argsort(-probabilities_V)[:60]:
            if probabilities_V[token] > 1e-4:
                middle = ends_V[token] - probabilities_V[token] / 2
                assert choose_at(middle, sampler, row_V, state, monkeypatch) == token, p
                near_start = ends_V[token] - probabilities_V[token] * 0.99
                assert choose_at(near_start, sampler, row_V, state, monkeypatch) == token, p


def random_params(rng: Random) -> SamplingParams:
    return SamplingParams(
        logit_bias={rng.randrange(40): rng.uniform(-5, 5) for _ in range(rng.choice([0, 0, 3]))},
        repetition_penalty=rng.choice([1.0, 1.0, 1.2, 0.8]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.5, -0.5]),
        presence_penalty=rng.choice([0.0, 0.0, 1.0]),
        penalty_window=rng.choice([None, None, 0, 1, 4, 12, 100]),
        temperature=rng.choice([0.0, 0.2, 0.7, 1.0, 1.9]),
        top_k=rng.choice([0, 0, 1, 7, 100]),
        top_p=rng.choice([1.0, 1.0, 0.95, 0.5, 0.01]),
        min_p=rng.choice([0.0, 0.0, 0.05, 0.5, 1.0]),
        typical_p=rng.choice([1.0, 1.0, 0.9, 0.3]),
        min_tokens=rng.choice([0, 0, 5]),
    )


@pytest.mark.parametrize("n_vocab", [40, 1500, 5000])  # on both sides of every limit in the fast version
def test_chooses_what_sorting_everything_chooses(n_vocab: int) -> None:
    rng, numbers = Random(n_vocab), np.random.default_rng(n_vocab)
    sampler = Sampler(n_vocab)
    for seed in range(400):
        p = random_params(rng)
        prompt, output = (
            [rng.randrange(40) for _ in range(9)],
            [rng.randrange(40) for _ in range(rng.randrange(9))],
        )
        row_V = (numbers.standard_normal(n_vocab) * rng.choice([0.1, 1, 4, 10])).astype(np.float32)
        state = SamplingState(p, prompt, [3, 5], seed)
        for token in output:
            state.note(token)
        x_V = slow_engine.adjusted(row_V, p, prompt, output, {3, 5})
        before = row_V.copy()
        assert sampler.choose(row_V, state, 11) == slow_engine.choose(x_V, p, uniform(seed, 11)), p
        assert (row_V == before).all()


def test_drawn_tokens_follow_the_distribution() -> None:
    p = SamplingParams(temperature=1.0, top_k=6)
    row_V = np.log(np.array([0.4, 0.01, 0.3, 0.1, 0.1, 0.05, 0.04], np.float32))
    sampler, state = Sampler(7), SamplingState(p, [], [], seed=1)
    n = 20_000
    counts = Counter(sampler.choose(row_V, state, position) for position in range(n))
    expected = np.array([0.4, 0, 0.3, 0.1, 0.1, 0.05, 0.04]) / 0.99
    for token, share in enumerate(expected):
        assert abs(counts[token] / n - share) < 4 * (share / n) ** 0.5 + 1e-12


def test_uniform_is_uniform_and_fixed_for_ever() -> None:
    # splitmix64 itself, state 0: the first outputs of its authors' code
    assert sampling._mix64(sampling._GAMMA) == 0xE220A8397B1DCDAF
    assert sampling._mix64(2 * sampling._GAMMA & sampling._MASK64) == 0x6E789E6AA1B965F4
    values = np.array([[uniform(seed, position) for position in range(200)] for seed in range(200)])
    assert 0 <= values.min() < values.max() < 1
    assert len(np.unique(values)) == values.size
    assert np.histogram(values, 10)[0] == pytest.approx(4000, rel=0.06)
    assert abs(np.corrcoef(values.ravel(), np.roll(values, 1, axis=1).ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(values.ravel(), np.roll(values, 1, axis=0).ravel())[0, 1]) < 0.02
    assert uniform(-1, 5) == uniform(2**64 - 1, 5)


def test_ties_go_to_the_lower_id() -> None:
    row_V = np.zeros(5000, np.float32)
    row_V[[7, 70, 700, 1000]] = 2
    sampler = Sampler(5000)
    state = SamplingState(SamplingParams(temperature=0), [], [], 0)
    assert sampler.choose(row_V, state, 0) == 7
    assert largest_ids(row_V, 3).tolist() == [7, 70, 700]
    assert largest_ids(row_V, 6).tolist() == [0, 1, 7, 70, 700, 1000]
    assert largest_ids(row_V[:4], 9).tolist() == [0, 1, 2, 3]
    for p in (SamplingParams(top_k=2), SamplingParams(temperature=0.01, top_p=0.5)):
        drawn = {sampler.choose(row_V, SamplingState(p, [], [], seed), 0) for seed in range(60)}
        assert drawn == {7, 70}


@pytest.mark.parametrize("masked", [-np.inf, -1e30])
def test_masked_logits_are_never_drawn(masked: float) -> None:
    row_V = np.full(3000, masked, np.float32)
    row_V[[5, 300, 2999]] = 1
    sampler = Sampler(3000)
    filters: list[dict[str, float]] = [{}, {"top_p": 0.99}, {"min_p": 0.1}, {"typical_p": 0.99}]
    for top_k in (0, 10, 2000):
        for options in filters:
            p = SamplingParams(**options, top_k=top_k, temperature=0.5)
            state = SamplingState(p, [], [], 4)
            assert {sampler.choose(row_V, state, position) for position in range(100)} == {5, 300, 2999}


def test_extreme_uniforms_and_broken_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    row_V = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    sampler = Sampler(3000)
    for options in ({}, {"top_k": 10}, {"top_p": 0.9}, {"min_p": 0.1}, {"typical_p": 0.9}):
        state = SamplingState(SamplingParams(**options), [], [], 0)
        for u in (0.0, 2.0**-53, 1 - 2.0**-53):
            assert 0 <= choose_at(u, sampler, row_V, state, monkeypatch) < 3000
        for value in (np.nan, np.inf):
            broken_V = row_V.copy()
            broken_V[9] = value
            assert sampler.choose(broken_V, state, 0) == 9


def test_logprobs_are_those_of_the_model() -> None:
    row_V = (np.random.default_rng(1).standard_normal(3000) * 3).astype(np.float32)
    exact_V = np.log(slow_engine.softmax(row_V.astype(np.float64)))
    item = Sampler(3000).logprob(row_V, 17, 5)
    assert item.token_id == 17
    assert item.logprob == pytest.approx(exact_V[17], abs=1e-12)
    best = np.argsort(-exact_V)[:5]
    assert [token for token, _ in item.top] == best.tolist()
    assert [value for _, value in item.top] == pytest.approx(exact_V[best], abs=1e-12)
    assert Sampler(3000).logprob(row_V, 17, 0).top == ()
