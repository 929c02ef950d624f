"""Tiny seeded checkpoints as Meta's int4 releases of Llama 3.2 are: params.json and consolidated.00.pth.

Values come from NumPy's Philox, which it keeps stable, so that only logits are stored: make_meta_quantized.py
runs the same files through Meta's own loading code.

    write_int4(folder, "spinquant")        or "qlora"
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch

VOCAB, DIM, FFN, LAYERS, HEADS, KV_HEADS, RANK, GROUP = 96, 64, 256, 2, 2, 1, 4, 32
TOKENS = [1, 90, 17, 4, 55, 23, 8, 71, 33, 2, 60, 19]
SCHEMES = ("spinquant", "qlora")


def params(scheme: str) -> dict[str, Any]:
    quantization = {
        "group_size": GROUP,
        "scheme": "int4_weight_int8_dynamic_activation",
        "spinquant": scheme == "spinquant",
    }
    found: dict[str, Any] = {
        "dim": DIM, "ffn_dim_multiplier": 1.5, "multiple_of": FFN, "n_heads": HEADS, "n_kv_heads": KV_HEADS,
        "n_layers": LAYERS, "norm_eps": 1e-05, "quantization_args": quantization, "rope_theta": 500000.0,
        "use_scaled_rope": True, "vocab_size": VOCAB,
    }  # fmt: skip
    if scheme == "qlora":
        found["lora_args"] = {"rank": RANK, "scale": 2.0}
    return found


def state_dict(scheme: str) -> dict[str, torch.Tensor]:
    """Every tensor of the file, in Meta's names and dtypes."""
    width = DIM // HEADS
    shapes = {
        "attention.wq": (DIM, DIM), "attention.wk": (KV_HEADS * width, DIM),
        "attention.wv": (KV_HEADS * width, DIM), "attention.wo": (DIM, DIM), "feed_forward.w1": (FFN, DIM),
        "feed_forward.w3": (FFN, DIM), "feed_forward.w2": (DIM, FFN),
    }  # fmt: skip
    stored = _eight_bits("tok_embeddings", 1.0)
    for layer in range(LAYERS):
        for part, shape in shapes.items():
            name = f"layers.{layer}.{part}"
            stored[f"{name}.weight"] = _codes(f"{name}.weight", shape, 8)
            stored[f"{name}.scales"] = _scales(f"{name}.scales", (shape[0], shape[1] // GROUP), 0.3, shape[1])
            if scheme == "qlora":
                adapter = {"A": (RANK, shape[1]), "B": (shape[0], RANK)}
                for which, ab in adapter.items():
                    key = f"{name}.adaptor.{which}.weight"
                    stored[key] = (_normal(key, ab) * 0.15).bfloat16()
        for part in ("attention_norm", "ffn_norm"):
            key = f"layers.{layer}.{part}.weight"
            stored[key] = (1 + 0.1 * _normal(key, (DIM,))).bfloat16()
    stored["norm.weight"] = (1 + 0.1 * _normal("norm", (DIM,))).bfloat16()
    return stored | _eight_bits("output", DIM**-0.5)


def write_int4(folder: Path, scheme: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state_dict(scheme), folder / "consolidated.00.pth")
    (folder / "params.json").write_text(json.dumps(params(scheme)))


def _eight_bits(name: str, size: float) -> dict[str, torch.Tensor]:
    return {
        f"{name}.weight": _codes(name, (VOCAB, DIM), 128),
        f"{name}.scales": _scales(f"{name}.scales", (VOCAB, 1), size / 70, 1),
    }


def _random(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=crc32(name.encode())))


def _codes(name: str, shape: tuple[int, ...], half: int) -> torch.Tensor:
    raw = _random(name).bit_generator.random_raw(int(np.prod(shape))) % np.uint64(2 * half)
    return torch.from_numpy((raw.astype(np.int64) - half).astype(np.int8).reshape(shape))


def _scales(name: str, shape: tuple[int, ...], size: float, n_in: int) -> torch.Tensor:
    """Around size / sqrt(n_in); floats of exact arithmetic."""
    raw = _random(name).bit_generator.random_raw(int(np.prod(shape))) >> np.uint64(40)
    values = (raw.astype(np.float64) / 2**24 + 0.5) * size / np.sqrt(n_in)
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def _normal(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Uniform numbers with the variance of a normal distribution: exact on every machine."""
    raw = _random(name).bit_generator.random_raw(int(np.prod(shape))) >> np.uint64(40)
    values = (raw.astype(np.float64) / 2**23 - 1) * np.sqrt(3.0)
    return torch.from_numpy(values.astype(np.float32).reshape(shape))
