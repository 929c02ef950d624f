"""Every layout takes the same steps as one process: losses and gradient norms over 20 of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from parity.oracle import oracle
from train.parallel.ranks import Run, alone, trajectories

from puna.core import BadValue
from puna.train.parallel.layout import Layout

RUNS = (
    Run("gqa", Layout(shard=2)),
    Run("gqa", Layout(tensor=2)),
    Run("gqa", Layout(context=2)),
    Run("gqa", Layout(shard=2, tensor=2)),
    Run("small_chunks", Layout(shard=2, context=2)),
    Run("tied", Layout(replicate=2, shard=2)),
    Run("tied", Layout(shard=2, tensor=2)),
)


def test_every_layout_takes_the_steps_of_one_process(tmp_path: Path) -> None:
    expected = {name: alone(Run(name)) for name in {run.name for run in RUNS}}
    for run, found in zip(RUNS, trajectories(RUNS, tmp_path), strict=True):
        for (loss, norm), (loss_alone, norm_alone) in zip(found, expected[run.name], strict=True):
            assert loss == pytest.approx(loss_alone, abs=1e-5), run
            assert norm == pytest.approx(norm_alone, rel=1e-4), run


def test_layouts_that_do_not_fit_are_refused() -> None:
    cfg = oracle("gqa").config
    with pytest.raises(BadValue, match="shard must be 1 or more, got 0"):
        Layout(shard=0)
    with pytest.raises(BadValue, match="the 4 ranks that there are, got 1 x 2 x 1 x 1 = 2"):
        Layout(shard=2).check(cfg, 4)
    with pytest.raises(BadValue, match="tensor must divide the model's 2 key/value heads, got 4"):
        Layout(tensor=4).check(cfg, 4)
