"""Small Meta checkpoints saved by torch, in checkpoints/, and the tensors that they hold.

make_checkpoints.py wrote them. Values are small whole numbers, exact in every format, from a seeded Philox
generator, which NumPy keeps stable.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from puna.model.config import ModelConfig
from puna.model.names import shapes

FOLDER = Path(__file__).parent / "checkpoints"

# of the kind of Llama 2 (two files, float16) and of Llama 3 (two files, bfloat16; one file, float32)
LLAMA2 = ModelConfig(16, 2, 4, 2, 4, 48, 32, 1e-5, 1e4, context_length=2048, tied=False)
LLAMA3 = ModelConfig(16, 1, 4, 2, 4, 48, 32, 1e-5, 5e5, context_length=8192, tied=False)


def tensors(config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """Our names -> float32, rows of wq and wk pair by pair."""
    bits = np.random.Philox(key=config.n_layers)
    return {
        name: (bits.random_raw(int(np.prod(shape))) % np.uint64(251)).astype(np.float32).reshape(shape) - 125
        for name, shape in shapes(config)
    }
