"""Tiny random checkpoints of Llama 4 and Llama 3.2 Vision, made and saved by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

_TEXT = {
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "rms_norm_eps": 1e-5,
}  # fmt: skip
LLAMA4_TEXT: dict[str, Any] = {
    **_TEXT, "intermediate_size": 32, "intermediate_size_mlp": 96, "num_hidden_layers": 4, "head_dim": 16,
    "num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2,
    "max_position_embeddings": 10485760, "attention_chunk_size": 8192,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 16.0, "low_freq_factor": 1.0,
        "high_freq_factor": 1.0, "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
_LLAMA4_VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128,
    "image_size": 28, "patch_size": 14, "pixel_shuffle_ratio": 0.5, "projector_input_dim": 48,
    "projector_output_dim": 48, "vision_output_dim": 48,
}  # fmt: skip
_MLLAMA_TEXT = {
    **_TEXT, "intermediate_size": 96, "num_hidden_layers": 5, "cross_attention_layers": [0, 3],
    "max_position_embeddings": 131072,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
_MLLAMA_VISION = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_global_layers": 2, "attention_heads": 2,
    "intermediate_size": 64, "image_size": 28, "patch_size": 14, "max_num_tiles": 4,
    "intermediate_layers_indices": [0, 2], "vision_output_dim": 96,
    "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
}  # fmt: skip

KINDS = ("llama4", "llama4 text", "mllama", "mllama text")


def save(kind: str, folder: Path, dtype: torch.dtype) -> Path:
    """A model of random weights, no norm or bias left at one or zero, as save_pretrained writes it."""
    model = _model(kind)
    torch.manual_seed(KINDS.index(kind))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.uniform_(-0.2, 0.2)
            parameter.data = parameter.data.to(dtype)  # not .to of the model: a complex table is in it
    model.save_pretrained(folder)
    return folder


def _model(kind: str) -> Any:
    if kind == "llama4 text":
        return transformers.Llama4ForCausalLM(transformers.Llama4TextConfig(**LLAMA4_TEXT))
    if kind == "mllama text":
        text = transformers.models.mllama.configuration_mllama.MllamaTextConfig(**_MLLAMA_TEXT)
        return transformers.MllamaForCausalLM(text)
    if kind == "llama4":
        config = transformers.Llama4Config(text_config=LLAMA4_TEXT, vision_config=_LLAMA4_VISION)
        return transformers.Llama4ForConditionalGeneration(config)
    config = transformers.MllamaConfig(
        text_config=_MLLAMA_TEXT, vision_config=_MLLAMA_VISION, image_token_index=64
    )
    return transformers.MllamaForConditionalGeneration(config)


def load(folder: Path) -> Any:
    """The model of a folder, as its own config.json names the class."""
    config = transformers.AutoConfig.from_pretrained(folder)
    (name,) = config.architectures
    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()


def inputs(kind: str) -> dict[str, torch.Tensor]:
    """A prompt, with pictures where the model sees."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 60, (1, 12), generator=generator)
    if kind != "mllama":
        return {"input_ids": ids}
    ids[0, 0] = 64
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(1, 1, 4, 3, 28, 28, generator=generator),
        "aspect_ratio_ids": torch.tensor([[6]]),
        "aspect_ratio_mask": torch.ones(1, 1, 4, dtype=torch.long),
        "cross_attention_mask": torch.ones(1, 12, 1, 4, dtype=torch.long),
    }


def logits(model: Any, kind: str) -> torch.Tensor:
    with torch.inference_mode():
        text = model.language_model if kind == "llama4" else model
        return text(**inputs(kind))[0]


def pictures(model: Any) -> torch.Tensor:
    """What a Llama 4 puts in place of a picture's tokens."""
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        seen = model.vision_model(pixels).last_hidden_state
        return model.multi_modal_projector(seen.view(-1, seen.size(-1)))
