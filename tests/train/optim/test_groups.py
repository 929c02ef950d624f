"""Groups of parameters, optimizers over them, and clipping, beside torch."""

from __future__ import annotations

import pytest
import torch
from parity.oracle import oracle
from torch import nn

from puna.core import BadValue
from puna.train.model.module import Llama
from puna.train.optim.build import Optimizers, clip
from puna.train.optim.groups import DEFAULT, Rule, claimed
from puna.train.optim.schedule import Schedule


@pytest.fixture(scope="module")
def model() -> Llama:
    known = oracle("gqa")
    made = Llama(known.config)
    made.load(known.tensors)
    return made


def test_every_parameter_is_claimed_once(model: Llama) -> None:
    parameters = dict(model.tensors())
    norms, matrices = (group for _, group in claimed(DEFAULT, parameters))
    assert set(norms) | set(matrices) == set(parameters)
    assert all(parameter.ndim == 1 for parameter in norms.values())
    assert all(parameter.ndim == 2 for parameter in matrices.values())


def test_rules_that_do_not_fit_are_refused(model: Llama) -> None:
    parameters = dict(model.tensors())
    with pytest.raises(BadValue, match="no rule claims norm"):
        claimed([Rule(r"layers\..*")], parameters)
    with pytest.raises(BadValue, match=r"rule 1, .*, matches no parameter"):
        claimed([Rule(r"layer\..*"), Rule()], parameters)
    with pytest.raises(BadValue, match="must be a regular expression"):
        Rule("(")
    with pytest.raises(BadValue, match="muon turns matrices, norm has the shape"):
        Optimizers(parameters, [Rule("norm", optimizer="muon"), Rule()], Schedule(1e-3))


def test_a_step_is_torchs(model: Llama) -> None:
    """Matrices by Muon, the rest by AdamW at a tenth of the rate."""
    rules = [Rule(r"layers\.\d+\.w\w", optimizer="muon"), Rule(rate=0.1, weight_decay=0.01)]
    parameters = {name: nn.Parameter(p.detach().clone()) for name, p in model.tensors()}
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter)
    matrices = [p for n, p in parameters.items() if p.ndim == 2 and n.startswith("layers.")]
    others = [p for p in parameters.values() if all(p is not m for m in matrices)]
    copies = [[nn.Parameter(p.detach().clone()) for p in each] for each in (matrices, others)]
    for each, made in zip((matrices, others), copies, strict=True):
        for parameter, copy in zip(each, made, strict=True):
            copy.grad = parameter.grad
    torch.optim.Muon(copies[0], lr=1e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw").step()
    torch.optim.AdamW(copies[1], lr=1e-4, weight_decay=0.01, betas=(0.9, 0.95)).step()
    own = Optimizers(parameters, rules, Schedule(1e-3, "constant"))
    assert own.set_rate(0, 10) == 1e-3
    own.step()
    for parameter, copy in zip([*matrices, *others], [*copies[0], *copies[1]], strict=True):
        torch.testing.assert_close(parameter, copy)
    own.zero_grad()
    assert all(parameter.grad is None for parameter in parameters.values())


@pytest.mark.parametrize("most", [0.5, 1e9])
def test_clipping_is_torchs(model: Llama, most: float) -> None:
    parameters = [nn.Parameter(p.detach().clone()) for _, p in model.tensors()]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    copies = [nn.Parameter(p.detach().clone()) for p in parameters]
    for copy, parameter in zip(copies, parameters, strict=True):
        assert parameter.grad is not None
        copy.grad = parameter.grad.clone()
    expected = torch.nn.utils.clip_grad_norm_(copies, most)
    torch.testing.assert_close(clip(parameters, most), expected)
    for parameter, copy in zip(parameters, copies, strict=True):
        torch.testing.assert_close(parameter.grad, copy.grad)
