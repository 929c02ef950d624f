"""Windows cover a text exactly once; the numbers are what the formula says."""

from __future__ import annotations

from math import exp, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core import BadValue, TokenLogprob
from puna.evals.perplexity import WindowConfig, count_windows, perplexity, windows


def test_windows_without_bos() -> None:
    found = list(windows(range(10), WindowConfig(window=4, stride=3), None))
    assert [(window.ids, window.n_scored) for window in found] == [
        ([0, 1, 2, 3], 3),
        ([3, 4, 5, 6], 3),
        ([6, 7, 8, 9], 3),
    ]


def test_windows_with_bos() -> None:
    found = list(windows(range(1, 8), WindowConfig(window=4, stride=2), 99))
    assert [(window.ids, window.n_scored) for window in found] == [
        ([99, 1, 2, 3], 3),
        ([99, 3, 4, 5], 2),
        ([99, 5, 6, 7], 2),
    ]


@given(st.integers(0, 200), st.integers(2, 40), st.integers(1, 39), st.sampled_from([None, 7]))
def test_every_token_is_scored_once_with_enough_context(
    n: int, size: int, stride: int, bos: int | None
) -> None:
    """Token i is i + 1000."""
    config = WindowConfig(size, min(stride, size - 1))
    scored: list[int] = []
    for i, window in enumerate(windows(range(1000, 1000 + n), config, bos)):
        assert len(window.ids) <= size
        assert (window.ids[0] == bos) == (bos is not None)
        assert 0 < window.n_scored < len(window.ids)
        if i:
            assert len(window.ids) - window.n_scored >= size - config.stride
        scored += window.ids[-window.n_scored :]
    first = 1000 if bos is not None else 1001
    assert scored == list(range(first, 1000 + n))
    assert count_windows(n, config, bos) == len(list(windows(range(n), config, bos)))


def test_perplexity_of_known_probabilities() -> None:
    """Every token costs log(its id) nats."""

    def score(ids: list[int]) -> list[TokenLogprob]:
        return [TokenLogprob(token, -log(token)) for token in ids[1:]]

    ticks: list[str] = []
    found = perplexity([2, 4, 8, 2, 8], 10, score, WindowConfig(3, 2), None, ticks.append)
    surprises = [log(4), log(8), log(2), log(8)]
    mean = sum(surprises) / 4
    assert found.perplexity == pytest.approx(exp(mean))
    assert found.nats_per_token == pytest.approx(mean)
    assert found.bits_per_byte == pytest.approx((2 + 3 + 1 + 3) / 10)
    variance = sum((value - mean) ** 2 for value in surprises) / 4
    assert found.standard_error == pytest.approx(exp(mean) * (variance / 4) ** 0.5)
    assert (found.n_tokens, found.n_scored, found.n_windows) == (5, 4, 2)
    assert ticks == ["0 tokens scored", "2 tokens scored"]


@pytest.mark.parametrize(("ids", "bos"), [([5], None), ([], 1), ([], None)])
def test_a_text_with_nothing_to_score(ids: list[int], bos: int | None) -> None:
    with pytest.raises(BadValue, match="the text must have at least"):
        perplexity(ids, 1, lambda ids: [], WindowConfig(), bos, lambda what: None)


def test_sizes_must_make_sense() -> None:
    with pytest.raises(BadValue, match="window must be 2 or more tokens, got 1"):
        WindowConfig(1, 1)
    with pytest.raises(BadValue, match="stride must be from 1 to 7 for this window, got 8"):
        WindowConfig(8, 8)
