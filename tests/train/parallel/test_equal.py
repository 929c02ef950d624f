"""Every layout takes the same steps as one process: losses and gradient norms over 20 of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from parity.oracle import oracle
from train.parallel.ranks import trajectory

from puna.core import BadValue
from puna.train.parallel.layout import Layout


@cache
def alone(name: str) -> list[tuple[float, float]]:
    return trajectory(name, Layout(), Path())


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("gqa", Layout(shard=2)),
        ("gqa", Layout(tensor=2)),
        ("gqa", Layout(shard=2, tensor=2)),
        ("gqa", Layout(context=2)),
        ("small_chunks", Layout(context=2, shard=2)),
        ("tied", Layout(replicate=2, shard=2)),
        ("tied", Layout(shard=2, tensor=2)),
    ],
    ids=str,
)
def test_the_steps_are_those_of_one_process(name: str, layout: Layout, tmp_path: Path) -> None:
    found = trajectory(name, layout, tmp_path)
    for (loss, norm), (expected, expected_norm) in zip(found, alone(name), strict=True):
        assert loss == pytest.approx(expected, abs=1e-5)
        assert norm == pytest.approx(expected_norm, rel=1e-4)


def test_layouts_that_do_not_fit_are_refused() -> None:
    cfg = oracle("gqa").config
    with pytest.raises(BadValue, match="shard must be 1 or more, got 0"):
        Layout(shard=0)
    with pytest.raises(BadValue, match="the 4 ranks that there are, got 1 x 2 x 1 x 1 = 2"):
        Layout(shard=2).check(cfg, 4)
    with pytest.raises(BadValue, match="tensor must divide the model's 2 key/value heads, got 4"):
        Layout(tensor=4).check(cfg, 4)
