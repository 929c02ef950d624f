"""Learning rates beside torch's and transformers' schedulers, and the figures of papers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_cosine_with_min_lr_schedule_with_warmup, get_wsd_schedule

from puna.core import BadValue
from puna.train.optim.schedule import Schedule


def rates_of(make: object, n: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    scheduler = make(optimizer)  # type: ignore[operator]
    found = []
    for _ in range(n):
        optimizer.step()
        scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_cosine_is_transformers() -> None:
    """Ours is a step ahead: the first step of a run does something."""
    expected = rates_of(
        lambda o: get_cosine_with_min_lr_schedule_with_warmup(o, 20, 100, min_lr_rate=0.1), 100
    )
    own = Schedule(3e-4, warmup=20)
    assert [own.rate(i, 100) for i in range(100)] == pytest.approx(expected)


def test_wsd_is_transformers() -> None:
    expected = rates_of(
        lambda o: get_wsd_schedule(o, 10, 30, num_stable_steps=60, min_lr_ratio=0.2, decay_type="linear"), 100
    )
    own = Schedule(3e-4, "wsd", warmup=10, floor=0.2, decay=30)
    # there the warmup begins at the floor, here at nothing
    assert [own.rate(i, 100) for i in range(10, 100)] == pytest.approx(expected[10:])


def test_llama_31_405b() -> None:
    """8e-5 after 8,000 steps, 8e-7 after 1,200,000 (arXiv 2407.21783, 3.4.1)."""
    own = Schedule(8e-5, warmup=8000, floor=0.01, steps=1_200_000)
    assert own.rate(7999, 10**9) == pytest.approx(8e-5)
    assert own.rate(1_199_999, 10**9) == pytest.approx(8e-7)
    assert own.rate(2_000_000, 10**9) == pytest.approx(8e-7)


@given(
    st.sampled_from(["cosine", "linear", "wsd", "constant"]), st.integers(0, 50), st.integers(1, 50),
    st.floats(0, 1),
)  # fmt: skip
def test_every_shape_rises_to_its_peak_and_falls_to_its_floor(
    name: str, warmup: int, decay: int, floor: float
) -> None:
    own = Schedule(1.0, name, warmup, floor, decay if name == "wsd" else None)  # type: ignore[arg-type]
    n = warmup + decay
    own.check(n)
    rates = [own.rate(i, n) for i in range(n)]
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[-1] == pytest.approx(1.0 if name == "constant" else floor)
    if warmup:
        assert rates[warmup - 1] == 1.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peak": 0.0}, "peak must be"),
        ({"peak": float("inf")}, "peak must be"),
        ({"peak": 1.0, "floor": 2.0}, "floor from 0 to 1"),
        ({"peak": 1.0, "warmup": -1}, "warmup must be"),
        ({"peak": 1.0, "decay": 5}, "decay is"),
        ({"peak": 1.0, "name": "wsd"}, "decay is"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(BadValue, match=said):
        Schedule(**settings)  # type: ignore[arg-type]
    with pytest.raises(BadValue, match="take 30 steps, but there are only 20"):
        Schedule(1.0, "wsd", warmup=20, decay=10).check(20)
