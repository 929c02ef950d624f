"""A tiny Llama 4 that sees, as a text file and a vision file of GGUF, random and made without torch."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from puna.model import names
from puna.model.config import ExpertsConfig, ModelConfig, QueryTemperature
from puna.model.vision_config import Llama4VisionConfig
from puna.weights.blocks.tensor import RawTensor
from puna.weights.convert import convert
from puna.weights.files.values import Metadata
from puna.weights.load import Checkpoint
from puna.weights.targets import Texts, plan

VISION = Llama4VisionConfig(tile_size=56, dim=16, n_layers=1, n_heads=2, ffn_dim=8, adapter_dim=8)


def write_seeing(path: Path, dim: int = 32) -> Path:
    """`path` and mmproj-NAME.gguf beside it."""
    config = ModelConfig(
        dim, 2, 2, 1, 16, 64, 40, 1e-5, 1e4, context_length=64, tied=False, attention_chunk=8192,
        no_rope_every=4, qk_norm=True, query_temperature=QueryTemperature(),
        experts=ExpertsConfig(2, 1, 32, 32), vision=VISION,
    )  # fmt: skip
    tensors = {
        name: RawTensor(name, "F32", shape, partial(_random, name, shape))
        for name, shape in names.shapes(config)
    }
    checkpoint = Checkpoint(config, Metadata({}), tensors)
    convert(plan(checkpoint, "gguf", Texts({}, {}, {}), name=path.stem), path)
    return path


def _random(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng([len(name), *shape])
    return rng.standard_normal(shape).astype(np.float32).reshape(-1).view(np.uint8)
