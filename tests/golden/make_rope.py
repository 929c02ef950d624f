"""Makes tests/golden/rope.json: frequencies and angles by transformers. Needs torch, which the tests do not.

    python tests/golden/make_rope.py

Each entry: a config.json, the length of sequence that dynamic and longrope are asked about, inverse
frequencies and attention factor of ROPE_INIT_FUNCTIONS (float32), and cos and sin at three positions by
LlamaRotaryEmbedding.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

POSITIONS = [1, 8192, 8300]
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}
LONG = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 4096,
    "short_factor": [1.0 + 0.01 * i for i in range(32)],
    "long_factor": [1.0 + 1.5 * i for i in range(32)],
}


def config(
    theta: float, context: int, head_dim: int, scaling: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "model_type": "llama", "vocab_size": 32, "hidden_size": 2 * head_dim, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": head_dim, "rope_theta": theta,
        "max_position_embeddings": context, "rope_scaling": scaling,
    }  # fmt: skip


ENTRIES: list[tuple[str, dict[str, Any], int | None]] = [
    ("plain", config(1e4, 4096, 128), None), ("llama3.1", config(5e5, 131072, 128, {"rope_type": "llama3",
    "factor": 8.0} | LLAMA3), None), ("llama3.2", config(5e5, 131072, 64, {"rope_type": "llama3", "factor":
    32.0} | LLAMA3), None), ("no band", config(5e5, 1048576, 128, {"rope_type": "llama3", "factor": 16.0} |
    LLAMA3 | {"high_freq_factor": 1.0}), None), ("linear", config(1e4, 8192, 128, {"type": "linear",
    "factor": 4.0}), None), ("dynamic, short", config(1e4, 4096, 128, {"type": "dynamic", "factor": 2.0}),
    4096), ("dynamic, long", config(1e4, 4096, 128, {"type": "dynamic", "factor": 2.0}), 20000), ("yarn",
    config(1e4, 131072, 128, YARN), None), ("yarn, stated", config(1e4, 131072, 64, YARN |
    {"attention_factor": 1.5, "beta_fast": 64.0, "beta_slow": 2.0}), None), ("yarn, mscale", config(1e6,
    131072, 64, YARN | {"mscale": 0.7, "mscale_all_dim": 0.3}), None), ("yarn, not truncated", config(1e4,
    131072, 64, YARN | {"truncate": False}), None), ("longrope, short", config(1e4, 131072, 64, LONG),
    4096), ("longrope, long", config(1e4, 131072, 64, LONG), 4097), ("longrope, factor", config(1e4, 131072,
    64, LONG | {"factor": 8.0}), 100000),
]  # fmt: skip


def entry(name: str, hf: dict[str, Any], length: int | None) -> dict[str, Any]:
    cfg = transformers.LlamaConfig(**json.loads(json.dumps(hf)))
    kind = cfg.rope_parameters["rope_type"]
    if kind == "default":
        frequencies, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(cfg)
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](cfg, seq_len=length)
    rotary = LlamaRotaryEmbedding(cfg)
    rotary.register_buffer("inv_freq", frequencies)
    # under no_grad and the choice by length, which is made above
    forward = LlamaRotaryEmbedding.forward.__wrapped__.__wrapped__
    rotary.attention_scaling = factor
    cos, sin = forward(rotary, torch.zeros(1), torch.tensor([POSITIONS]))
    half = cos.shape[-1] // 2
    return {
        "name": name,
        "config": hf,
        "length": length,
        "frequencies": frequencies.tolist(),
        "attention_factor": factor,
        "positions": POSITIONS,
        "cos": cos[0, :, :half].tolist(),
        "sin": sin[0, :, :half].tolist(),
    }


def main() -> None:
    golden = {
        "provenance": {
            "script": "tests/golden/make_rope.py",
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
        "entries": [entry(*e) for e in ENTRIES],
    }
    Path(__file__).with_name("rope.json").write_text(json.dumps(golden, indent=None) + "\n")


if __name__ == "__main__":
    main()
