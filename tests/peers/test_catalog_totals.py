"""Every shape of the catalog against transformers' own model, built on the meta device: names and totals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from puna.model import names
from puna.model.catalog import CATALOG, find
from puna.model.config import ModelConfig, from_hf
from puna.model.incoming import incoming
from puna.model.sizes import n_parameters

pytestmark = pytest.mark.peers

VISION4 = {"hidden_size": 1408, "image_size": 336, "vision_output_dim": 4096}
MULTIMODAL: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-4-scout": ("Llama4", {"text_config": {}, "vision_config": VISION4}),
    "llama-4-maverick": (
        "Llama4",
        {
            "text_config": {"num_local_experts": 128, "interleave_moe_layer_step": 2},
            "vision_config": VISION4,
        },
    ),
    "llama-guard-4-12b": (
        "Llama4",
        {"text_config": {"moe_layers": [], "intermediate_size_mlp": 8192}, "vision_config": VISION4},
    ),
    "llama-3.2-11b-vision": ("Mllama", {"text_config": {}, "vision_config": {"image_size": 448}}),
    "llama-3.2-11b-vision-instruct": ("Mllama", {"text_config": {}, "vision_config": {"image_size": 560}}),
    "llama-3.2-90b-vision": (
        "Mllama",
        {
            "text_config": {
                "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
                "num_hidden_layers": 100, "cross_attention_layers": list(range(3, 100, 5)),
            },
            "vision_config": {"image_size": 560},
        },
    ),
}  # fmt: skip
DENSE = {e.config: e.name for e in CATALOG if e.config.vision is None}


def on_meta(config: Any, kind: str) -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        return getattr(transformers, kind)(config)


def cut(state: Mapping[str, Any], cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes under our names; one zero stands for all elements."""
    found = {}
    for name, tensor in state.items():
        array = np.broadcast_to(np.float32(0), tuple(tensor.shape))
        for piece in incoming("hf", name, cfg):
            found[piece.ours] = array.shape if piece.heads else piece.of(array).shape
    return found


@pytest.mark.parametrize("name", MULTIMODAL)
def test_multimodal(name: str) -> None:
    import transformers

    kind, arguments = MULTIMODAL[name]
    config = getattr(transformers, f"{kind}Config")(**arguments)
    model = on_meta(config, f"{kind}ForConditionalGeneration")
    cfg = from_hf(json.loads(config.to_json_string()))
    names.check_shapes(cfg, cut(model.state_dict(), cfg))
    total = sum(p.numel() for p in model.parameters())
    assert total == n_parameters(cfg) == n_parameters(find(name).config)


@pytest.mark.parametrize("config", DENSE, ids=DENSE.values())
def test_dense(config: ModelConfig) -> None:
    import transformers

    theirs = transformers.LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.dim, intermediate_size=config.ffn_dim,
        num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads, head_dim=config.head_dim,
        num_key_value_heads=config.n_kv_heads, tie_word_embeddings=config.tied,
    )  # fmt: skip
    model = on_meta(theirs, "LlamaForCausalLM")
    assert sum(p.numel() for p in model.parameters()) == n_parameters(config)
