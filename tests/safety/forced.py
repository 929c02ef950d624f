"""A guard with forced logits: it says "unsafe" where a mark stands anywhere in what it reads, else "safe".

Llama Guard's weights are gated, so tests use a Llama of one layer whose weights are written by hand. All
tokens have the same embedding, that of the mark has one number more. Attention without queries is the mean
over all tokens, so that the number reaches the last one however long the text is; there it raises the logit
of "u", which lies below that of "s" without it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from llm.tiny_llm import CONTROL, write_tiny_llm
from numpy.typing import NDArray
from safety import guards

_GAIN = 4e4  # of one mark among all tokens


def write_forced_guard(
    path: Path, mark: str = "!", template: str = guards.GUARD_3, context: int = 8192
) -> Path:
    """`mark` is one ASCII character that the template does not have."""
    assert mark not in template.replace("!=", "")

    def weights(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        values = np.zeros(shape, np.float32)
        if name.endswith("norm"):
            values[:] = 1
        elif name == "tok_embeddings":
            values[:, 0] = 1
            values[_token(mark), 1] = 1
        elif name == "layers.0.wv":
            values[0, 1] = 1
        elif name == "layers.0.wo":
            values[2, 0] = _GAIN
        elif name == "output":
            values[_token("s"), 0] = values[_token("u"), 2] = 1
        return values

    return write_tiny_llm(
        path, template=template, context=context, quant="f32", weights=weights, n_layers=1, tied=False
    )


def _token(letter: str) -> int:
    return len(CONTROL) + ord(letter)
