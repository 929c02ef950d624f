"""Tiny random vision models in transformers, the same weights under our names, and how both are run.

transformers is the oracle but for two things, in which it differs from Meta's code (llama-models,
llama3/multimodal/model.py), which decides:
- since version 5 its Llama 3.2 encoder takes the outputs of the intermediate layers and not their inputs. It
  is given each number less one here;
- a token that sees no image gets the mean of all images' values from cross-attention and not zero. A hook
  does here what `CrossAttention.forward` does.

Shapes: N tiles, T tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import transformers
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from puna.core import Batch, Chunk, Image, PlacedImage
from puna.model import names
from puna.model.config import ModelConfig, from_hf
from puna.model.incoming import incoming
from puna.model.rope import rope_table
from puna.runtime.native import NativeExecutor
from puna.runtime.reference import ReferenceExecutor
from puna.runtime.torch import TorchExecutor
from puna.weights.blocks.tensor import RawTensor

VOCAB, IMAGE_TOKEN, PATCH_TOKEN = 96, 96, 90
SIDE, PATCH = 16, 4  # 16 patches of 4 x 4 pixels
BLOCKS = [5, 2, 9, 7, 11, 12]

_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 128, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": False, "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
}  # fmt: skip
_VISION: dict[str, Any] = {"image_size": SIDE, "patch_size": PATCH, "intermediate_size": 192}


@dataclass(frozen=True)
class VisionModel:
    hf: Any
    config: ModelConfig
    tensors: dict[str, np.ndarray]


@cache
def model(name: str) -> VisionModel:
    """`mllama` or `llama4`, with random weights far from those of initialisation, gates included."""
    torch.manual_seed(len(name))
    hf = _mllama() if name == "mllama" else _llama4()
    for key, parameter in hf.named_parameters():
        std = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 and "pos" not in key else 0.3
        mean = (
            2.0
            if "q_norm" in key or "k_norm" in key
            else float("norm" in key or "gate" in key.split(".")[-1])
        )
        torch.nn.init.normal_(parameter, 0.0 if key.endswith("bias") else mean, std)
    fields = hf.config.to_dict()
    if name == "mllama":
        indices = fields["vision_config"]["intermediate_layers_indices"]
        fields["vision_config"]["intermediate_layers_indices"] = [i + 1 for i in indices]
    config = from_hf(fields)
    tensors = {}
    for key, value in hf.state_dict().items():
        for part in incoming("hf", key, config):
            tensors[part.ours] = np.ascontiguousarray(part.of(value.numpy()))
    names.check_shapes(config, {key: value.shape for key, value in tensors.items()})
    return VisionModel(hf, config, tensors)


def _mllama() -> Any:
    vision = transformers.models.mllama.MllamaVisionConfig(
        **_VISION, hidden_size=48, num_hidden_layers=4, num_global_layers=2, attention_heads=4,
        max_num_tiles=4, intermediate_layers_indices=[0, 2], vision_output_dim=48 * 3,
    )  # fmt: skip
    text = transformers.models.mllama.MllamaTextConfig(
        **_TEXT, num_hidden_layers=5, cross_attention_layers=[1, 3]
    )
    config = transformers.MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN)
    config._attn_implementation = "eager"
    return transformers.MllamaForConditionalGeneration(config).eval().float()


def _llama4() -> Any:
    vision = transformers.Llama4VisionConfig(
        **_VISION, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, pixel_shuffle_ratio=0.5,
        projector_input_dim=56, projector_output_dim=56, vision_output_dim=56,
    )  # fmt: skip
    text = transformers.Llama4TextConfig(
        **_TEXT, intermediate_size_mlp=96, num_hidden_layers=4, head_dim=32, attention_chunk_size=64,
        num_local_experts=4, num_experts_per_tok=1, interleave_moe_layer_step=1, use_qk_norm=True,
        attn_temperature_tuning=True, floor_scale=16, attn_scale=0.1, router_aux_loss_coef=0.0,
        no_rope_layers=[1, 1, 1, 0],
    )  # fmt: skip
    config = transformers.Llama4Config(vision_config=vision, text_config=text, image_token_index=PATCH_TOKEN)
    config._attn_implementation = "eager"
    return transformers.Llama4ForConditionalGeneration(config).eval().float()


def picture(rows: int, columns: int, *, thumbnail: bool = False, seed: int = 0) -> Image:
    n = rows * columns + (thumbnail and rows * columns > 1)
    pixels = np.random.default_rng((seed, n)).standard_normal((n, 3, SIDE, SIDE)).astype(np.float32)
    return Image(pixels, rows, columns, hashlib.sha256(pixels.tobytes() + bytes((rows, columns))).digest())


def prompt(name: str, parts: Sequence[int | Image], seed: int = 1) -> tuple[list[int], list[PlacedImage]]:
    """So many random text tokens, or an image, for each part."""
    rng, ids, placed = np.random.default_rng(seed), [], []
    for part in parts:
        if isinstance(part, int):
            ids += rng.integers(0, PATCH_TOKEN, part).tolist()
        else:
            n = 1 if name == "mllama" else len(part.pixels) * 4
            placed.append(PlacedImage(part, range(len(ids), len(ids) + n)))
            ids += [IMAGE_TOKEN if name == "mllama" else PATCH_TOKEN] * n
    return ids, placed


CASES = {
    "mllama-1-tile": ("mllama", [2, picture(1, 1), 6]),
    "mllama-2-tiles": ("mllama", [picture(1, 2), 7]),
    "mllama-2-rows": ("mllama", [1, picture(2, 1), 7]),
    "mllama-4-tiles": ("mllama", [3, picture(2, 2), 6]),
    "mllama-two-images": ("mllama", [3, picture(1, 1), 5, picture(1, 3, seed=1), 6]),
    "mllama-neighbours": ("mllama", [2, picture(1, 1), 4, picture(1, 2, seed=1), picture(2, 1, seed=2), 5]),
    "mllama-text": ("mllama", [12]),
    "llama4-1-tile": ("llama4", [3, picture(1, 1), 6]),
    "llama4-2-tiles": ("llama4", [3, picture(1, 2, thumbnail=True), 6]),
    "llama4-5-tiles": ("llama4", [5, picture(2, 2, thumbnail=True), 8]),
    "llama4-two-images": ("llama4", [2, picture(1, 1), 3, picture(3, 1, thumbnail=True, seed=1), 4]),
    "llama4-text": ("llama4", [12]),
}


def oracle(name: str, ids: Sequence[int], placed: Sequence[PlacedImage]) -> np.ndarray:
    """Log-probabilities [T, V] of a full pass by transformers."""
    with torch.inference_mode():
        ids_1T, images = torch.tensor([list(ids)]), [p.image for p in placed]
        logits = (_run_mllama if name == "mllama" else _run_llama4)(model(name).hf, ids_1T, images)
    return log_softmax(logits[0].numpy())


def _run_llama4(hf: Any, ids_1T: torch.Tensor, images: list[Image]) -> torch.Tensor:
    """The parts of Llama4ForConditionalGeneration.forward, which ends with an error in transformers 5.24."""
    x_1TD = hf.get_input_embeddings()(ids_1T)
    if images:
        pixels = torch.from_numpy(np.concatenate([i.pixels for i in images]))
        features = hf.multi_modal_projector(hf.vision_model(pixels).last_hidden_state.flatten(0, 1))
        mask = hf.get_placeholder_mask(ids_1T, inputs_embeds=x_1TD, image_features=features)
        x_1TD = x_1TD.masked_scatter(mask, features)
    logits: torch.Tensor = hf.language_model(inputs_embeds=x_1TD, use_cache=False).logits
    return logits


def _run_mllama(hf: Any, ids_1T: torch.Tensor, images: list[Image]) -> torch.Tensor:
    inputs, hooks = {"input_ids": ids_1T, "use_cache": False}, []
    if images:
        inputs |= _mllama_inputs(ids_1T[0].tolist(), images)
        sees_T1 = inputs["cross_attention_mask"][0].flatten(1).any(1, keepdim=True).float()
        for layer in hf.model.language_model.layers:
            if hasattr(layer, "cross_attn"):
                hook = layer.cross_attn.register_forward_hook(lambda _m, _i, out: (out[0] * sees_T1, out[1]))
                hooks.append(hook)
    logits: torch.Tensor = hf(**inputs).logits
    for hook in hooks:
        hook.remove()
    return logits


def _mllama_inputs(ids: Sequence[int], images: Sequence[Image]) -> dict[str, Any]:
    grids = model("mllama").config.vision.aspect_ratios
    pixels = torch.zeros(1, len(images), 4, 3, SIDE, SIDE)
    mask = torch.zeros(1, len(images), 4, dtype=torch.long)
    for i, image in enumerate(images):
        pixels[0, i, : len(image.pixels)] = torch.from_numpy(image.pixels)
        mask[0, i, : len(image.pixels)] = 1
    sparse = get_cross_attention_token_mask(list(ids), IMAGE_TOKEN)
    n_tiles = [len(image.pixels) for image in images]
    dense = convert_sparse_cross_attention_mask_to_dense([sparse], [n_tiles], 4, len(ids))
    return {
        "pixel_values": pixels,
        "aspect_ratio_mask": mask,
        "aspect_ratio_ids": torch.tensor([[grids.index((i.rows, i.columns)) + 1 for i in images]]),
        "cross_attention_mask": torch.from_numpy(dense),
    }


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def stored(tensors: dict[str, np.ndarray]) -> dict[str, RawTensor]:
    def data(values: np.ndarray) -> np.ndarray:
        return values.view(np.uint8).reshape(-1)

    return {name: RawTensor(name, "F32", t.shape, partial(data, t)) for name, t in tensors.items()}


def executor(kind: str, m: VisionModel, **options: Any) -> Any:
    if kind == "numpy":
        return ReferenceExecutor(m.config, m.tensors, n_blocks=64, block_size=32, **options)
    if kind == "native":
        options = {"cache_type": "f32", "cache_tokens": 2048} | options
        return NativeExecutor(m.config, stored(m.tensors), rope_table(m.config), **options)
    rope, options = rope_table(m.config), {"device": "cpu", "dtype": "f32", "cache_tokens": 2048} | options
    return TorchExecutor(m.config, stored(m.tensors), rope, **options)


def run(ex: Any, ids: Sequence[int], placed: Sequence[PlacedImage], cuts: Sequence[int]) -> np.ndarray:
    """Log-probabilities [T, V] of a sequence computed in chunks of so many tokens."""
    rows, start = [], 0
    for n in cuts:
        chunk = Chunk(ids[start : start + n], start, BLOCKS, n, placed)
        rows.append(ex.step(Batch([chunk])).copy())
        start += n
    assert start == len(ids)
    return log_softmax(np.concatenate(rows))
