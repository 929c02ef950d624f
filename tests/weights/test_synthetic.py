"""Synthetic checkpoints: llama.cpp's choice of formats, same bytes every time, and back from a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from puna.core import BadValue, Unsupported
from puna.model.catalog import find
from puna.model.config import ExpertsConfig, ModelConfig, QueryTemperature, RopeScaling
from puna.model.names import shapes
from puna.model.rope import rope_table
from puna.weights.blocks.quant import dequantize
from puna.weights.load import open_checkpoint, write_checkpoint
from puna.weights.quantize.mixes import FILE_TYPES, tensor_kind
from puna.weights.synthetic import synthetic_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden" / "llama_cpp_kinds.json"
CONFIG = ModelConfig(
    dim=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    ffn_dim=256,
    vocab_size=96,
    norm_eps=2**-17,
    rope_theta=10000.0,
    context_length=256,
    tied=False,
)
MODELS = json.loads(GOLDEN.read_text())["models"]


@pytest.mark.parametrize("model", MODELS)
def test_kinds_are_llama_cpps(model: str) -> None:
    golden = MODELS[model]
    n_layers, dim, n_heads, n_kv_heads, ffn_dim, tied = golden["shape"]
    config = replace(
        CONFIG, n_layers=n_layers, dim=dim, n_heads=n_heads, n_kv_heads=n_kv_heads, ffn_dim=ffn_dim, tied=tied
    )
    config = replace(config, head_dim=dim // n_heads)
    for quant in FILE_TYPES:
        found: dict[str, list[str]] = {}
        for name, shape in shapes(config):
            found.setdefault(name.rsplit(".", 1)[-1], []).append(tensor_kind(config, quant, name, shape))
        expected = {part: [k for k, n in runs for _ in range(n)] for part, runs in golden[quant].items()}
        assert found == expected, (model, quant)


@pytest.mark.parametrize("quant", FILE_TYPES)
def test_values(quant: str) -> None:
    checkpoint = synthetic_checkpoint(CONFIG, quant, seed=7)
    again, other = synthetic_checkpoint(CONFIG, quant, seed=7), synthetic_checkpoint(CONFIG, quant, seed=8)
    seen = set()
    for name, tensor in checkpoint.tensors.items():
        data = tensor.data()
        assert data.tobytes() == again.tensors[name].data().tobytes() != other.tensors[name].data().tobytes()
        seen.add(data.tobytes())
        values = dequantize(data, tensor.kind, tensor.shape)
        if values.ndim == 1:
            assert 0.7 < values.min() < values.max() < 1.3
        else:
            assert values.std() == pytest.approx(tensor.shape[-1] ** -0.5, rel=0.1)
    assert len(seen) == len(checkpoint.tensors)


@pytest.mark.parametrize("quant", FILE_TYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_back_from_a_file(quant: str, tied: bool, tmp_path: Path) -> None:
    checkpoint = synthetic_checkpoint(replace(CONFIG, tied=tied), quant)
    write_checkpoint(checkpoint, tmp_path / "m.gguf")
    with open_checkpoint(tmp_path / "m.gguf") as opened:
        assert opened.config == checkpoint.config
        assert opened.n_bytes == checkpoint.n_bytes
        assert opened.metadata["general.file_type"] == FILE_TYPES[quant].number
        assert list(opened.tensors) == list(checkpoint.tensors)
        for name, tensor in opened.tensors.items():
            assert tensor.data().tobytes() == checkpoint.tensors[name].data().tobytes()


SPARSE = replace(
    CONFIG, n_layers=4, experts=ExpertsConfig(3, 2, 256, 256, every=2), attention_chunk=8192, no_rope_every=4,
    qk_norm=True, query_temperature=QueryTemperature(),
)  # fmt: skip


def test_experts_come_back(tmp_path: Path) -> None:
    checkpoint = synthetic_checkpoint(SPARSE, "q4_k_m")
    write_checkpoint(checkpoint, tmp_path / "m.gguf")
    with open_checkpoint(tmp_path / "m.gguf") as opened:
        assert opened.config == SPARSE
        assert opened.tensors["layers.1.experts_w1"].shape == (3, 256, CONFIG.dim)
        for name, tensor in opened.tensors.items():
            assert tensor.data().tobytes() == checkpoint.tensors[name].data().tobytes()


SCALINGS = [
    RopeScaling("linear", factor=4.0),
    RopeScaling("linear", factor=4.0, factors=(1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 8.0)),
    RopeScaling("llama3", factor=8.0, original_context=64),
    RopeScaling("factors", factors=(1.0, 1.0, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)),
    RopeScaling("yarn", factor=4.0, original_context=64),
    RopeScaling("yarn", factor=4.0, original_context=64, attention_factor=1.5, beta_fast=16.0, beta_slow=2.0),
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_rope_scaling_comes_back(scaling: RopeScaling, tmp_path: Path) -> None:
    config = replace(CONFIG, rope_scaling=scaling)
    write_checkpoint(synthetic_checkpoint(config, "q8_0"), tmp_path / "m.gguf")
    with open_checkpoint(tmp_path / "m.gguf") as opened:
        ours, back = rope_table(config), rope_table(opened.config)
    np.testing.assert_allclose(back.frequencies, ours.frequencies, rtol=1e-6)
    assert back.attention_factor == pytest.approx(ours.attention_factor, rel=1e-6)


def test_refusals() -> None:
    with pytest.raises(BadValue, match=r"unknown quantization 'q4km'; did you mean 'q4_k_m'\?; known: f32"):
        synthetic_checkpoint(CONFIG, "q4km")
    with pytest.raises(Unsupported, match="stands for attention_chunk 8192, and this model has 16"):
        synthetic_checkpoint(replace(SPARSE, attention_chunk=16), "q4_0")
    with pytest.raises(Unsupported, match="as wide as the others, 256, and this model's is 64 wide"):
        synthetic_checkpoint(replace(SPARSE, experts=ExpertsConfig(3, 2, 256, 64, every=2)), "q4_0")
    with pytest.raises(Unsupported, match="choose a shape without images"):
        synthetic_checkpoint(find("llama-3.2-11b-vision").config, "q4_0")
    with pytest.raises(Unsupported, match="cannot state 'dynamic' rope scaling"):
        synthetic_checkpoint(replace(CONFIG, rope_scaling=RopeScaling("dynamic", factor=2.0)), "q4_0")
