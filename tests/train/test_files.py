"""From a checkpoint, through training, into files that executors run: log-probabilities stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llm.tiny_llm import write_tiny_llm
from numpy.typing import NDArray
from torch.nn.functional import log_softmax

from puna import LLM
from puna.cli.convert import texts_of
from puna.train.model.files import read_model, with_model
from puna.train.model.module import Llama
from puna.train.model.rows import rows_of
from puna.train.optim.build import Optimizers
from puna.train.optim.groups import DEFAULT
from puna.train.optim.schedule import Schedule
from puna.train.step import Batch, Stepper
from puna.weights.convert import convert
from puna.weights.load import open_checkpoint
from puna.weights.targets import Quantization, plan

TEXT = [40, 90, 12, 77, 150, 9, 200, 31, 8, 64, 99, 120]


def trained(model: Llama) -> Llama:
    optimizers = Optimizers(dict(model.tensors()), DEFAULT, Schedule(3e-3, "constant"))
    stepper = Stepper(model, optimizers, n_steps=5)
    tokens = torch.tensor([TEXT * 4])
    losses = [stepper.step(i, [Batch(rows_of(tokens), tokens.roll(-1, 1))]).loss for i in range(5)]
    assert losses[-1] < losses[0] - 0.3
    return model


def logprobs(model: Llama) -> NDArray[np.float32]:
    """Of each token of the text after the first, by the trainer."""
    tokens = torch.tensor([TEXT])
    with torch.no_grad():
        rows = log_softmax(model.logits(model.hidden(rows_of(tokens))), -1)
    return rows[:-1].gather(1, tokens[0, 1:, None])[:, 0].numpy()


@pytest.mark.parametrize(
    ("more", "tolerance"),
    [
        ({"dtype": "F32"}, 1e-3),
        ({"dtype": "BF16"}, 2e-2),
        ({"quantization": Quantization("q8_0")}, 5e-2),
    ],
    ids=["f32", "bf16", "q8_0"],
)
def test_what_was_trained_is_what_runs(more: dict[str, Any], tolerance: float, tmp_path: Path) -> None:
    path = write_tiny_llm(tmp_path / "start.gguf")
    out = tmp_path / "trained.gguf"
    with open_checkpoint(path) as checkpoint:
        model = trained(read_model(checkpoint))
        made = with_model(checkpoint, model)
        convert(plan(made, "gguf", texts_of(checkpoint, "gguf"), name="trained", **more), out)
    expected = logprobs(model)
    with LLM(out, threads=1, cache_type="f32") as llm:
        scored = llm.score([TEXT])[0]
    np.testing.assert_allclose([one.logprob for one in scored], expected, atol=tolerance)
    with LLM(path, threads=1) as llm:  # which training has changed by far more
        before = [one.logprob for one in llm.score([TEXT])[0]]
    assert np.abs(np.array(before) - expected).max() > 0.3
