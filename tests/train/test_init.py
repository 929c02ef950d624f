"""Weights to begin with."""

from __future__ import annotations

from math import log

import pytest
import torch
from parity.oracle import oracle

from puna.core import BadValue
from puna.train.model.init import initialize
from puna.train.model.module import Llama
from puna.train.model.rows import rows_of


@pytest.mark.parametrize("name", ["gqa", "experts"])
def test_a_new_model_knows_nothing(name: str) -> None:
    """Its loss is that of a guess among all words, and its parts have the sizes that the recipe says."""
    cfg = oracle(name).config
    model = Llama(cfg)
    initialize(model, seed=3)
    tokens = torch.randint(0, cfg.vocab_size, (2, 64))
    sums = model(rows_of(tokens), tokens.roll(-1, 1).flatten())
    assert sums.loss.item() / tokens.numel() == pytest.approx(log(cfg.vocab_size), abs=0.05)
    for key, parameter in model.tensors():
        if parameter.ndim == 1:
            assert (parameter == 1).all(), key
            continue
        is_damped = key.endswith(("wo", "w2"))
        size = 0.02 / (2 * cfg.n_layers) ** 0.5 if is_damped else 0.02
        assert parameter.std().item() == pytest.approx(0.987 * size, rel=0.1), key
        assert parameter.abs().max() <= 3 * size


def test_it_is_a_function_of_seed_and_name() -> None:
    cfg = oracle("gqa").config
    made = [Llama(cfg) for _ in range(3)]
    for model, seed in zip(made, (1, 1, 2), strict=True):
        initialize(model, seed)
    a, b, c = (dict(model.tensors()) for model in made)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["layers.0.wq"], c["layers.0.wq"])
    assert not torch.equal(a["layers.0.w1"], a["layers.1.w1"])
    with pytest.raises(BadValue, match="std must be"):
        initialize(made[0], std=0)
