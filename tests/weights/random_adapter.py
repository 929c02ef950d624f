"""Random adapters of any model, with and without a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from puna.model.config import ModelConfig
from puna.model.names import PERMUTED, adaptable_shapes, permute, to_hf
from puna.weights.adapter import CONFIG, WEIGHTS, Adapter, Part
from puna.weights.blocks.quant import quantize
from puna.weights.blocks.tensor import RawTensor


def random_adapter(cfg: ModelConfig, seed: int, kind: str = "F32", rank: int = 8) -> Adapter:
    """Of all matrices that may have one; strong enough to change every answer."""
    rng = np.random.default_rng(seed)

    def tensor(name: str, *shape: int) -> RawTensor:
        data = quantize(rng.normal(0, shape[1] ** -0.5, shape).astype(np.float32), kind)
        return RawTensor(name, kind, shape, lambda: data)

    return Adapter(
        {
            name: Part(tensor(name, rank, n_in), tensor(name, n_out, rank), 0.5)
            for name, (n_out, n_in) in adaptable_shapes(cfg).items()
        }
    )


def write_random_adapter(folder: Path, cfg: ModelConfig, seed: int, rank: int = 8) -> Path:
    """The same in PEFT's layout."""
    tensors = {}
    for name, part in random_adapter(cfg, seed, rank=rank).parts.items():
        down, up = (t.data().view(np.float32).reshape(t.shape) for t in (part.down, part.up))
        last = name.rpartition(".")[2]
        if last in PERMUTED:
            up = permute(up, cfg.n_heads if last == "wq" else cfg.n_kv_heads)
        module = to_hf(name).removesuffix(".weight")
        tensors[f"base_model.model.{module}.lora_A.weight"] = np.ascontiguousarray(down)
        tensors[f"base_model.model.{module}.lora_B.weight"] = np.ascontiguousarray(up)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank / 2}
    (folder / CONFIG).write_text(json.dumps(config))
    return folder
