"""A run that goes on is the run that was not stopped: on the same ranks or on others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity.oracle import oracle
from train.parallel.ranks import N_STEPS, Run, alone, trajectories

from puna.core import BadFile, BadValue
from puna.train.checkpoint import Checkpoints
from puna.train.model.module import Llama
from puna.train.optim.build import Optimizers
from puna.train.optim.groups import DEFAULT, Rule
from puna.train.optim.schedule import Schedule
from puna.train.parallel.layout import Layout


def test_what_was_stopped_goes_on_to_the_bit(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    found = alone(Run("gqa", n_steps=8, saved=saved)) + alone(Run("gqa", saved=saved))
    assert found == alone(Run("gqa"))
    assert Checkpoints(saved).steps() == [8, N_STEPS]


def test_what_was_stopped_goes_on_over_another_layout(tmp_path: Path) -> None:
    layouts = Layout(shard=2), Layout(shard=2, tensor=2), Layout(replicate=2)
    runs = [Run("gqa", one, n, tmp_path) for one, n in zip(layouts, (6, 12, N_STEPS), strict=True)]
    found = [step for part in trajectories(runs, tmp_path) for step in part]
    for got, whole in zip(found, alone(Run("gqa")), strict=True):
        assert got == pytest.approx(whole, rel=1e-4)


def run(name: str = "gqa", rules: tuple[Rule, ...] = DEFAULT) -> tuple[Llama, Optimizers]:
    known = oracle(name)
    model = Llama(known.config)
    model.load(known.tensors)
    optimizers = Optimizers(dict(model.tensors()), rules, Schedule(1e-3, "constant"))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers.set_rate(0, 10)
    optimizers.step()
    return model, optimizers


def test_some_are_kept_and_none_is_ever_half_there(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run", keep=2)
    model, optimizers = run()
    (tmp_path / "run" / "step-000000003.partial").mkdir()  # of a run that was killed
    for step in (1, 2, 3):
        checkpoints.save(model, optimizers, step)
    assert checkpoints.steps() == [2, 3]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["step-000000002", "step-000000003"]
    other, others = run("gqa")
    with torch.no_grad():
        other.norm.zero_()
    assert checkpoints.load(other, others, step=2) == 2
    for (name, a), b in zip(model.tensors(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        states = [part.parts[0].state[p] for part, p in ((optimizers, a), (others, b))]
        assert torch.equal(states[0]["exp_avg_sq"], states[1]["exp_avg_sq"]), name


def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    model, optimizers = run()
    with pytest.raises(BadFile, match="has not a checkpoint; found none"):
        checkpoints.load(model, optimizers)
    checkpoints.save(model, optimizers, 5)
    with pytest.raises(BadFile, match="has not the checkpoint of step 4; found 5"):
        checkpoints.load(model, optimizers, step=4)
    with pytest.raises(BadFile, match="cannot be read as a checkpoint of this model"):
        checkpoints.load(*run("mha"))
    (tmp_path / "step-000000005" / ".metadata").write_bytes(b"no")
    with pytest.raises(BadFile, match="cannot be read as a checkpoint of this model"):
        checkpoints.load(model, optimizers)
    with pytest.raises(BadValue, match="keep must be"):
        Checkpoints(tmp_path, keep=0)
