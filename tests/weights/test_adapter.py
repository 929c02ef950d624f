"""What of PEFT's and GGUF's adapters is read, and what is refused by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from puna.core import BadFile, Unsupported
from puna.model.config import ModelConfig
from puna.weights.adapter import CONFIG, WEIGHTS, read_adapter
from puna.weights.blocks.tensor import RawTensor
from puna.weights.files.gguf import write_gguf
from puna.weights.files.values import Value, ValueType

CFG = ModelConfig(
    dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=32, ffn_dim=96, vocab_size=96, norm_eps=1e-5,
    rope_theta=1e4, context_length=256, tied=True,
)  # fmt: skip
PREFIX = "base_model.model.model.layers.0."
SHAPES = {"self_attn.q_proj": (128, 64), "self_attn.v_proj": (64, 64), "mlp.down_proj": (64, 96)}


def write_peft(folder: Path, rank: int = 4, **config: Any) -> Path:
    rng = np.random.default_rng(0)
    tensors = {}
    for module, (n_out, n_in) in SHAPES.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = rng.normal(size=(rank, n_in)).astype(np.float32)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = rng.normal(size=(n_out, rank)).astype(np.float32)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    stated = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": list(SHAPES), **config}
    (folder / CONFIG).write_text(json.dumps(stated))
    return folder


def floats(tensor: RawTensor) -> NDArray[np.float32]:
    return tensor.data().view(np.float32).reshape(tensor.shape)


def test_ranks_and_scales_are_those_of_the_patterns(tmp_path: Path) -> None:
    plain = read_adapter(write_peft(tmp_path / "a"), CFG)
    assert sorted(plain.parts) == ["layers.0.w2", "layers.0.wq", "layers.0.wv"]
    assert {part.scale for part in plain.parts.values()} == {2.0}
    assert plain.rank == 4
    stable = read_adapter(write_peft(tmp_path / "b", use_rslora=True), CFG)
    assert {part.scale for part in stable.parts.values()} == {4.0}
    patterns = {"alpha_pattern": {r"layers\.[0-9]\.self_attn\.q_proj": 2, "down_proj": 1}}
    mixed = read_adapter(write_peft(tmp_path / "c", **patterns), CFG)
    scales = {name.rpartition(".")[2]: part.scale for name, part in mixed.parts.items()}
    assert scales == {"wq": 0.5, "w2": 0.25, "wv": 2.0}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3', not LORA"),
        ({"use_dora": True}, "use_dora = True"),
        ({"bias": "lora_only"}, "bias 'lora_only'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\]"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out = True"),
        ({"target_parameters": ["experts.w1"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"something_new": 3}, "something_new = 3"),
    ],
)
def test_what_puna_does_not_compute_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(Unsupported, match=message):
        read_adapter(write_peft(tmp_path / "a", **config), CFG)


def change(folder: Path, **tensors: Any) -> Path:
    """Replace tensors of a file; None takes one away."""
    found = load_file(folder / WEIGHTS) | tensors
    save_file({name: value for name, value in found.items() if value is not None}, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{PREFIX}self_attn.q_proj.lora_B.weight": None}, "one of the two matrices"),
        (
            {f"{PREFIX}self_attn.q_proj.lora_B.weight": np.zeros((96, 4), np.float32)},
            "it is of another model",
        ),
        ({f"{PREFIX}self_attn.q_proj.lora_B.weight": np.zeros((127, 4), np.float32)}, "another model"),
        ({f"{PREFIX}self_attn.q_proj.lora_A.weight": np.zeros((4, 32), np.float32)}, "another model"),
        ({f"{PREFIX}self_attn.q_proj.lora_A.weight": np.zeros((2, 64), np.float32)}, "should have rank 4"),
        ({f"{PREFIX}self_attn.q_proj.lora_magnitude_vector": np.zeros(4, np.float32)}, "no low-rank matrix"),
        ({f"{PREFIX}self_attn.q_proj.lora_A.weight": np.zeros((4, 64), np.int32)}, "I32"),
    ],
)
def test_damaged_and_foreign_tensors_are_refused(
    tmp_path: Path, tensors: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadFile, match=message):
        read_adapter(change(write_peft(tmp_path / "a"), **tensors), CFG)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("model.layers.7.self_attn.q_proj", "which this model does not have"),
        ("model.layers.0.mlp.experts.w9", "which this model does not have"),
        ("model.embed_tokens", "adapts the matrices of attention"),
        ("lm_head", "adapts the matrices of attention"),
    ],
)
def test_matrices_that_are_not_adapted_are_refused(tmp_path: Path, module: str, message: str) -> None:
    folder = write_peft(tmp_path / "a")
    pair = {f"base_model.model.{module}.lora_{half}.weight": np.zeros((4, 4), np.float32) for half in "AB"}
    with pytest.raises(BadFile, match=message):
        read_adapter(change(folder, **pair), CFG)


def test_a_folder_without_an_adapter_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"adapter_config\.json cannot be read"):
        read_adapter(tmp_path, CFG)
    with pytest.raises(BadFile, match="must be a folder with adapter_config"):
        read_adapter(tmp_path / "nothing", CFG)
    (tmp_path / CONFIG).write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    with pytest.raises(BadFile, match=r"expected adapter_model\.safetensors"):
        read_adapter(tmp_path, CFG)


def write_gguf_adapter(path: Path, peft: Path, alpha: float, kind: str = "adapter") -> Path:
    """What convert_lora_to_gguf.py makes of PEFT's: query rows as LlamaModel.permute has them."""
    gguf = {"self_attn.q_proj": "attn_q", "self_attn.v_proj": "attn_v", "mlp.down_proj": "ffn_down"}
    tensors = []
    for name, value in load_file(peft / WEIGHTS).items():
        module, half = name.removeprefix(PREFIX).removesuffix(".weight").rsplit(".lora_", 1)
        if module == "self_attn.q_proj" and half == "B":
            value = value.reshape(4, 2, 16, -1).swapaxes(1, 2).reshape(128, -1)
        data = np.ascontiguousarray(value).view(np.uint8).reshape(-1)
        new = f"blk.0.{gguf[module]}.weight.lora_{half.lower()}"
        tensors.append(RawTensor(new, "F32", value.shape, lambda data=data: data))  # type: ignore[misc]
    metadata = {
        "general.architecture": Value.of(ValueType.STRING, "llama"),
        "general.type": Value.of(ValueType.STRING, kind),
        "adapter.type": Value.of(ValueType.STRING, "lora"),
        "adapter.lora.alpha": Value.of(ValueType.FLOAT32, alpha),
    }
    write_gguf(path, metadata, tensors)
    return path


def test_a_gguf_adapter_is_the_same_as_the_peft_adapter_it_was_made_of(tmp_path: Path) -> None:
    peft = write_peft(tmp_path / "a")
    ours = read_adapter(peft, CFG)
    gguf = read_adapter(write_gguf_adapter(tmp_path / "a.gguf", peft, 8.0), CFG)
    assert gguf.parts.keys() == ours.parts.keys()
    for name, part in ours.parts.items():
        assert part.scale == gguf.parts[name].scale
        assert np.array_equal(floats(part.down), floats(gguf.parts[name].down))
        assert np.array_equal(floats(part.up), floats(gguf.parts[name].up))


def test_a_gguf_model_is_no_adapter(tmp_path: Path) -> None:
    path = write_gguf_adapter(tmp_path / "a.gguf", write_peft(tmp_path / "a"), 8.0, "model")
    with pytest.raises(BadFile, match="expected a GGUF file of an adapter"):
        read_adapter(path, CFG)
