"""One step's loss and gradients equal transformers', on a tiny model of every generation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity.features import FEATURES, SHORT
from parity.oracle import oracle

from puna.model.incoming import incoming
from puna.train.model.loss import cross_entropy
from puna.train.model.module import Llama
from puna.train.model.rows import IGNORED, rows_of

TEXT = [name for name, feature in FEATURES.items() if feature.n_tokens == SHORT]


@pytest.mark.parametrize("name", TEXT)
def test_loss_and_gradients_are_those_of_transformers(name: str) -> None:
    known = oracle(name)
    tokens_BN = torch.tensor([known.tokens, known.tokens[::-1]]).clamp(
        min=1
    )  # 0 pads there, without gradient
    labels_BN = tokens_BN.roll(-1, 1)
    labels_BN[:, -1] = labels_BN[0, :20] = IGNORED  # no answer to be learnt there
    model = Llama(known.config)
    model.load(known.tensors)
    n_labels = int((labels_BN != IGNORED).sum())
    x_TD = model.hidden(rows_of(tokens_BN))
    loss = cross_entropy(x_TD, labels_BN.flatten(), model.logits, chunk=50).loss / n_labels
    loss.backward()

    known._hf.zero_grad()
    logits = known._hf(tokens_BN, use_cache=False).logits
    expected = F.cross_entropy(logits.flatten(0, 1), labels_BN.flatten(), ignore_index=IGNORED)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    gradients = {}
    for key, parameter in known._hf.named_parameters():
        for part in incoming("hf", key, known.config):
            assert parameter.grad is not None
            gradients[part.ours] = part.of(parameter.grad.numpy())
    own = dict(model.tensors())
    assert set(own) == set(gradients)
    for key, parameter in own.items():
        assert parameter.grad is not None
        np.testing.assert_allclose(parameter.grad.numpy(), gradients[key], atol=1e-5, err_msg=key)
