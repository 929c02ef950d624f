"""Adapters as PEFT itself writes them, over tiny models of transformers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_model(folder: Path, **changes: Any) -> LlamaForCausalLM:
    """A random model in Hugging Face's layout; float32, so that tolerances can be small."""
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**{**options, **changes})).eval()
    model.save_pretrained(folder)
    return model


def write_adapter(
    folder: Path, base: Path, seed: int, *, dtype: torch.dtype = torch.float32, **options: Any
) -> Any:
    """A random adapter of the model in `base`, saved as `dtype`, and the model that PEFT makes of both."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    config = {"r": 8, "lora_alpha": 16, "target_modules": list(ALL), "init_lora_weights": False, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads what transformers will drop
        adapted = get_peft_model(model, LoraConfig(**config)).eval()
    low_rank = [parameter for name, parameter in adapted.named_parameters() if "lora_" in name]
    for parameter in low_rank:
        parameter.data = parameter.data.to(dtype)
    adapted.save_pretrained(folder)
    for parameter in low_rank:
        parameter.data = parameter.data.float()
    return adapted
