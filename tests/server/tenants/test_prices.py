from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core import BadInput
from puna.server.tenants.prices import Price, PriceList, dollars, read_prices

LIST = """
[[price]]
model = "big"
input = 0.05
cached_input = "0.012345678"
output = 1
[[price]]
model = "big"
from = 2026-12-01
input = 3
output = 15
[[price]]
model = "*"
input = 0.001
output = 0
"""
NOVEMBER = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)
DECEMBER = datetime(2026, 12, 1, tzinfo=UTC)


def test_prices_by_model_and_day(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(LIST)
    prices = read_prices(path)
    assert prices.cost("big", NOVEMBER, 1_000_000, 0, 0) == 50_000_000  # 5 cents
    assert prices.cost("big", NOVEMBER, 1_000_000, 1_000_000, 0) == 12_345_678
    assert prices.cost("big", DECEMBER, 1_000_000, 1_000_000, 1_000_000) == 18 * 10**9
    assert prices.cost("small", DECEMBER, 1, 0, 10**9) == 1
    assert PriceList().cost("small", DECEMBER, 1, 0, 1) == 0


AMOUNTS = st.integers(0, 10**12)


@settings(max_examples=200, deadline=None)
@given(AMOUNTS, AMOUNTS, AMOUNTS, st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**7))
def test_costs_are_exact_and_rounded_once(
    input_: int, cached: int, output: int, n_new: int, n_cached: int, n_output: int
) -> None:
    prices = PriceList((Price("m", input_, cached, output),))
    found = prices.cost("m", NOVEMBER, n_new + n_cached, n_cached, n_output)
    # dollars for a million tokens, as fractions
    exact = sum(
        n * Fraction(price, 10**9) / 10**6
        for n, price in ((n_new, input_), (n_cached, cached), (n_output, output))
    )
    assert -Fraction(1, 2) < found - exact * 10**9 <= Fraction(1, 2)


def test_dollars() -> None:
    assert dollars(0) == "0.000000000"
    assert dollars(12 * 10**9 + 34) == "12.000000034"


GOOD = '[[price]]\nmodel = "m"\ninput = 1\noutput = 1\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "must have tables"),
        ("x = ", "must be a readable TOML file"),
        ("[[prise]]", "there is no table 'prise'; did you mean 'price'"),
        ("[price]\nmodel = 'm'", "must have tables"),
        (GOOD + "outptu = 1", "price 1: there is no field 'outptu'; did you mean 'output'"),
        (GOOD + GOOD.replace("output = 1", ""), "price 2 needs output"),
        (GOOD + GOOD, "two prices of 'm' from the same day"),
        (GOOD + "from = 'soon'", "from must be a day"),
        (GOOD + "from = 2026-12-01T00:00:00Z", "from must be a day"),
        (GOOD + "cached_input = -0.1", "cached_input must be dollars"),
        (GOOD + "cached_input = 0.0000000001", "at most 9 digits"),
        (GOOD + "cached_input = nan", "cached_input must be dollars"),
        (GOOD + "cached_input = true", "cached_input must be dollars"),
        (GOOD + "cached_input = 'free'", "cached_input must be dollars"),
        (GOOD.replace('"m"', '""'), "model must be a name"),
    ],
)
def test_wrong_files_get_a_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=sentence) as caught:
        read_prices(path)
    assert "\n" not in str(caught.value)
    assert "prices.toml" in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        read_prices(tmp_path / "none.toml")
