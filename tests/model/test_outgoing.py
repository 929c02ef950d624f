"""What `outgoing` writes, `incoming` reads: for every layout and every kind of Llama, at tiny sizes."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest
from model.test_incoming import DENSE, LLAMA4, MLLAMA
from numpy.typing import NDArray

from puna.core import Unsupported
from puna.model import catalog
from puna.model.config import ModelConfig
from puna.model.incoming import incoming
from puna.model.names import Scheme, shapes
from puna.model.outgoing import outgoing
from puna.model.vision_config import Llama32VisionConfig

SCHEMES: tuple[Scheme, ...] = ("hf", "meta", "gguf")
TABLES = ("gated_positional_embedding", "pre_tile_pos_embed", "post_tile_pos_embed")
SIZES = ("dim", "ffn_dim", "vocab_size", "n_layers", "n_heads", "n_kv_heads", "head_dim")


def shrunk(config: ModelConfig) -> ModelConfig:
    """A config of the same kind with few small layers."""
    heads = {"n_heads": 4, "n_kv_heads": min(2, 4 * config.n_kv_heads // config.n_heads) or 1, "head_dim": 4}
    small: dict[str, Any] = {"dim": 16, "ffn_dim": 24, "vocab_size": 12, "n_layers": 4, **heads}
    if config.rope_scaling is not None and config.rope_scaling.factors:
        small["rope_scaling"] = None
    if config.experts is not None:
        small["experts"] = replace(config.experts, n_experts=3, expert_ffn_dim=6, shared_ffn_dim=6)
    if config.cross_attention:
        small["cross_attention"] = (0, 2)
    if config.vision is not None:
        small["vision"] = MLLAMA.vision if isinstance(config.vision, Llama32VisionConfig) else LLAMA4.vision
    return replace(config, **small)


KINDS = {shrunk(entry.config): entry.name for entry in catalog.CATALOG}
CONFIGS = [*KINDS, DENSE, LLAMA4, MLLAMA, replace(LLAMA4, vision=None), replace(MLLAMA, vision=None)]


def tensors(config: ModelConfig) -> dict[str, NDArray[np.int64]]:
    """Numbers that are all different; tables of tiles as all grids agree on them."""
    arrays, start = {}, 1
    for name, shape in shapes(config):
        arrays[name] = np.arange(start, start + prod(shape)).reshape(shape)
        start += prod(shape)
    if isinstance(config.vision, Llama32VisionConfig):
        for table in TABLES:
            name = f"vision.{table}"
            tiles = arrays[name].reshape(len(arrays[name]), config.vision.max_tiles, -1)
            by_tile = tiles[:4, :4].copy()
            tiles[:] = 0
            for i, (h, w) in enumerate(config.vision.aspect_ratios, start=1):
                tiles[i, : h * w] = by_tile[:h, :w].reshape(h * w, -1)
    return arrays


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: KINDS.get(config, "tiny"))
def test_incoming_reads_what_outgoing_writes(scheme: Scheme, config: ModelConfig) -> None:
    ours, back = tensors(config), {}
    for foreign in outgoing(scheme, config):
        whole = foreign.of(ours)
        assert whole.shape == foreign.shape
        for part in foreign.parts:
            assert part.shape_of(foreign.shape) == ours[part.ours].shape
            assert part.ours not in back
            back[part.ours] = part.of(whole)
    assert back.keys() == ours.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_tables_that_meta_cannot_hold() -> None:
    ours = tensors(MLLAMA)
    ours["vision.pre_tile_pos_embed"][0] = 1  # the row of no grid
    (table,) = (f for f in outgoing("meta", MLLAMA) if f.name.endswith("pre_tile_pos_embed.embedding"))
    with pytest.raises(Unsupported, match="differ between grids of tiles"):
        table.of(ours)
    assert all(f.of(ours) is not None for f in outgoing("hf", MLLAMA))


@pytest.mark.parametrize("shape", [(19,), (19, 16), (4, 4, 4)])
def test_shapes_that_hold_nothing(shape: tuple[int, ...]) -> None:
    fused = next(f for f in outgoing("hf", MLLAMA) if len(f.parts) == 2)
    assert fused.name == "language_model.model.embed_tokens.weight"
    assert None in [part.shape_of(shape) for part in fused.parts]


def test_names_of_vision_files() -> None:
    """Those of llama.cpp's converter, by its own table in the gguf package."""
    gguf = pytest.importorskip("gguf")
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 8)
    by_hf = {foreign.parts[0].ours: foreign.name for foreign in outgoing("hf", LLAMA4)}
    for foreign in outgoing("gguf", LLAMA4):
        ours = foreign.parts[0].ours
        if not ours.startswith("vision") or ours == "vision_projection":
            continue
        name = by_hf[ours] + (".weight" if ours == "vision.positional_embedding" else "")
        found = table.get_name(name, (".weight", ".bias"))
        # newer tables send this name to one of Gemma's, which llama.cpp's encoder of Llama 4 does not read
        assert found.replace("attn_post_norm", "ln2") == foreign.name
        assert incoming("gguf", found, LLAMA4) == foreign.parts
    assert foreign.name == "mm.model.fc.weight"  # conversion of Llama4VisionModel
