"""A checkpoint as the folder that other engines open: config.json and model.safetensors, all in BF16.

Only what measuring needs: no tokenizer, for peers are given ids.

Shapes: R rows, X row length.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core import Unsupported
from puna.model import names
from puna.model.config import ModelConfig
from puna.weights.load import Checkpoint
from puna.weights.quant import dequantize, quantize


def write_hf_folder(checkpoint: Checkpoint, folder: Path) -> None:
    """Raises Unsupported for a scaling of rotary positions other than Llama 3's."""
    config = _config(checkpoint.config)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    stored = [name for name, _ in names.shapes(checkpoint.config)]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in stored:
        shape = checkpoint.tensors[name].shape
        start, end = end, end + 2 * prod(shape)
        header[names.to_hf(name)] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for data in _tensors(checkpoint, stored):
            file.write(data.data)


def _tensors(checkpoint: Checkpoint, stored: list[str]) -> Iterator[NDArray[np.uint8]]:
    cfg = checkpoint.config
    heads = {"wq": cfg.n_heads, "wk": cfg.n_kv_heads}
    for name in stored:
        tensor = checkpoint.tensors[name]
        values_RX = dequantize(tensor.data(), tensor.kind, tensor.shape)
        part = name.rpartition(".")[2]
        if part in heads:
            values_RX = names.permute(values_RX, heads[part])
        yield np.ascontiguousarray(quantize(values_RX, "BF16"))


def _config(cfg: ModelConfig) -> Mapping[str, Any]:
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": cfg.dim,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads,
        "head_dim": cfg.head_dim,
        "intermediate_size": cfg.ffn_dim,
        "vocab_size": cfg.vocab_size,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "max_position_embeddings": cfg.context_length,
        "tie_word_embeddings": cfg.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    scaling = cfg.rope_scaling
    if scaling is not None:
        if scaling.kind != "llama3":
            raise Unsupported(
                f"a bench against vLLM needs plain or Llama 3 rope scaling, got {scaling.kind!r}"
            )
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return config
