"""What a Llama sees: both image encoders, written once over the ops of ops/table.py, as block.py is.

An encoder is a fixed list of ops for an image of so many tiles. What depends on the image itself (its pixels,
its grid) is prepared in numpy by `tiles` and `positions`, and reaches the ops as `Tiles`, unseen by `encode`.

Llama 3.2 Vision encodes all tiles of an image together, missing ones included, and gives every
cross-attention layer keys and values (llama-models, llama3/multimodal). Llama 4 encodes each tile by itself
and gives embeddings that take the place of tokens (llama-models, llama4/vision).

Shapes: N tiles, P patches of one, T rows of a tile (class token, and padding in Llama 3.2), X = N * T rows, Q
values of a patch, D width of the encoder, I positions of the image that the decoder sees, E width of the
decoder, S rows merged into one, C head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core import BadValue, Image
from puna.model.config import ModelConfig
from puna.model.names_vision import vision_shapes
from puna.model.vision_config import Llama4VisionConfig, Llama32VisionConfig, VisionConfig

Array = NDArray[np.float32]
Read = Callable[[Any], Array]  # a part of a weight as numbers

ROW_MULTIPLE = 8  # Llama 3.2 fills the rows of a tile up to this


@dataclass(frozen=True, slots=True)
class TileLayerWeights:
    """A layer of an encoder; Llama 3.2 has no bias in attention, and gates in its global layers only."""

    ln_1: Any  # [D], as the other norms and all biases but c_fc's
    ln_1_bias: Any
    wq: Any  # [D, D], as wk, wv and wo
    wk: Any
    wv: Any
    wo: Any
    ln_2: Any
    ln_2_bias: Any
    c_fc: Any  # [F, D]
    c_fc_bias: Any  # [F]
    c_proj: Any  # [D, F]
    c_proj_bias: Any
    wq_bias: Any = None
    wk_bias: Any = None
    wv_bias: Any = None
    wo_bias: Any = None
    gate_attn: Any = None  # [1], before tanh
    gate_ffn: Any = None


@dataclass(frozen=True, slots=True)
class VisionWeights:
    """An encoder and its projection, in the shapes of names_vision.py; absent parts are the other kind's."""

    conv1: Any  # [D, Q]
    class_embedding: Any  # [D]
    positional_embedding: Any  # [P + 1, D]
    ln_pre: Any
    ln_pre_bias: Any
    ln_post: Any
    ln_post_bias: Any
    vision_projection: Any
    layers: tuple[TileLayerWeights, ...]
    global_layers: tuple[TileLayerWeights, ...] = ()
    vision_projection_bias: Any = None
    gated_positional_embedding: Any = None
    gated_positional_embedding_gate: Any = None
    pre_tile_pos_embed: Any = None
    pre_tile_pos_embed_gate: Any = None
    post_tile_pos_embed: Any = None
    post_tile_pos_embed_gate: Any = None
    c_fc: Any = None  # of the adapter
    c_proj: Any = None
    rope: Any = None  # TileRope


def assemble_vision(cfg: VisionConfig, text_dim: int, tensors: Mapping[str, Any]) -> VisionWeights:
    """The weights from any mapping of our names, as names.assemble does for the decoder."""
    top: dict[str, Any] = {}
    stacks: dict[str, dict[int, dict[str, Any]]] = {"layers": {}, "global_layers": {}}
    for name, _ in vision_shapes(cfg, text_dim):
        parts = name.removeprefix("vision.").removeprefix("vision_adapter.").split(".")
        if len(parts) == 3:
            stacks[parts[0]].setdefault(int(parts[1]), {})[parts[2]] = tensors[name]
        else:
            top[parts[0]] = tensors[name]
    layers = {kind: tuple(TileLayerWeights(**part) for part in of.values()) for kind, of in stacks.items()}
    return VisionWeights(
        **top, **layers, rope=TileRope.of(cfg) if isinstance(cfg, Llama4VisionConfig) else None
    )


@dataclass(frozen=True, slots=True, eq=False)
class TileRope:
    """Rotation by column and row of a patch: half of the pairs of a head turn by each. Class tokens stay."""

    frequencies: NDArray[np.float64]  # [C/4], radians per column or row
    side: int  # patches of a row

    @classmethod
    def of(cls, cfg: Llama4VisionConfig) -> TileRope:
        width = cfg.dim // cfg.n_heads // 2
        frequencies = cfg.rope_theta ** -(np.arange(0, width, 2, dtype=np.float64) / width)
        return cls(frequencies, cfg.tile_size // cfg.patch_size)

    def angles(self, positions_X: NDArray[np.int64]) -> tuple[Array, Array]:
        """cos and sin, float32 [X, C/2]: columns first; both count from 1."""
        column_X, row_X = positions_X % self.side + 1, positions_X // self.side + 1
        angles_XC2 = np.concatenate(
            [np.multiply.outer(i, self.frequencies) for i in (column_X, row_X)], axis=1
        )
        angles_XC2[positions_X < 0] = 0
        return np.cos(angles_XC2).astype(np.float32), np.sin(angles_XC2).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """An image as the ops of an encoder get it; the shapes are functions of the number of tiles alone."""

    patches: Array  # [X, Q], zero in rows of class tokens and padding
    positions: Array  # [X, D]: class token, and embeddings of positions and tiles
    tiles: Array | None  # [X, D]: embeddings of tiles before the global layers
    patch_of_X: NDArray[np.int64]  # number of the patch in its tile, -1 where there is none
    filling_X: NDArray[np.bool_]  # rows that fill up a tile, zero before the first layer
    padding_X: NDArray[np.bool_]  # those and all rows of missing tiles
    n_groups: int  # rows that attend to each other are so many equal parts
    wanted_RS: NDArray[np.int64]  # rows of the encoder that become a row of the projection's input


def tiles(cfg: VisionConfig, w: VisionWeights, image: Image, read: Read) -> Tiles:
    """Prepare an image that `n_positions` has accepted."""
    patches_NPQ = unfold(np.asarray(image.pixels, np.float32), cfg.patch_size)
    if isinstance(cfg, Llama32VisionConfig):
        return _tiles_llama32(cfg, w, image, patches_NPQ, read)
    return _tiles_llama4(cfg, w, patches_NPQ, read)


def unfold(pixels: Array, side: int) -> Array:
    """[N, 3, height, width] -> [N, P, Q]: patches row by row, the values of one by channel, row, column."""
    n, channels, height, width = pixels.shape
    cut = pixels.reshape(n, channels, height // side, side, width // side, side)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(n, -1, channels * side * side)


def _tiles_llama32(
    cfg: Llama32VisionConfig, w: VisionWeights, image: Image, patches_NPQ: Array, read: Read
) -> Tiles:
    """Class token first; always max_tiles tiles, of which the missing ones are black, and rows of padding."""
    n, n_rows, d = cfg.max_tiles, cfg.tokens_per_tile, cfg.dim
    height = -(-n_rows // ROW_MULTIPLE) * ROW_MULTIPLE
    grid = cfg.aspect_ratios.index((image.rows, image.columns)) + 1
    by_tile_ND = _gated(w.pre_tile_pos_embed, w.pre_tile_pos_embed_gate, grid, (n, 1, d), read)
    gate = np.tanh(read(w.gated_positional_embedding_gate))
    x_NTD = np.zeros((n, height, d), np.float32)
    x_NTD[:, :1] = read(w.class_embedding)
    x_NTD[:, 1:n_rows] = by_tile_ND
    x_NTD[:, :n_rows] += (1 - gate) * read(w.positional_embedding)
    x_NTD[:, :n_rows] += gate * read(w.gated_positional_embedding[grid]).reshape(n, n_rows, d)
    patches_NTQ = np.zeros((n, height, patches_NPQ.shape[2]), np.float32)
    patches_NTQ[: len(patches_NPQ), 1:n_rows] = patches_NPQ
    after_ND = _gated(w.post_tile_pos_embed, w.post_tile_pos_embed_gate, grid, (n, 1, d), read)
    row_NT = np.broadcast_to(np.arange(height), (n, height))
    real_NT = (row_NT < n_rows) & (np.arange(n)[:, None] < len(patches_NPQ))
    return Tiles(
        patches=patches_NTQ.reshape(n * height, -1),
        positions=x_NTD.reshape(n * height, d),
        tiles=np.repeat(after_ND, height, axis=1).reshape(n * height, d),
        patch_of_X=np.where((row_NT > 0) & (row_NT < n_rows), row_NT - 1, -1).ravel(),
        filling_X=(row_NT >= n_rows).ravel(),
        padding_X=~real_NT.ravel(),
        n_groups=1,
        wanted_RS=np.flatnonzero(real_NT)[:, None],
    )


def _gated(table: Any, gate: Any, grid: int, shape: tuple[int, ...], read: Read) -> Array:
    rows: Array = np.tanh(read(gate)) * read(table[grid]).reshape(shape)
    return rows


def _tiles_llama4(cfg: Llama4VisionConfig, w: VisionWeights, patches_NPQ: Array, read: Read) -> Tiles:
    """Class token last; each tile by itself."""
    n, n_patches, width = patches_NPQ.shape
    height = n_patches + 1
    x_TD = read(w.positional_embedding).copy()
    x_TD[-1] += read(w.class_embedding)
    patches_NTQ = np.zeros((n, height, width), np.float32)
    patches_NTQ[:, :-1] = patches_NPQ
    patch_of_T = np.append(np.arange(n_patches), -1)
    side, s = cfg.tile_size // cfg.patch_size, round(1 / cfg.pixel_shuffle)
    merged = np.arange(n_patches).reshape(side // s, s, side // s, s).transpose(0, 2, 1, 3).reshape(-1, s * s)
    return Tiles(
        patches=patches_NTQ.reshape(n * height, width),
        positions=np.tile(x_TD, (n, 1)),
        tiles=None,
        patch_of_X=np.tile(patch_of_T, n),
        filling_X=np.zeros(n * height, np.bool_),
        padding_X=np.zeros(n * height, np.bool_),
        n_groups=n,
        wanted_RS=(np.arange(n)[:, None, None] * height + merged).reshape(-1, s * s),
    )


def encode(ops: Any, cfg: VisionConfig, w: VisionWeights) -> Any:
    """The image of the ops as the decoder reads it [I, E]."""
    x_XD = ops.add(ops.linear(ops.given("patches"), w.conv1), ops.given("positions"))
    x_XD = ops.layer_norm(x_XD, w.ln_pre, w.ln_pre_bias, cfg.norm_eps)
    if isinstance(cfg, Llama32VisionConfig):
        return _encode_llama32(ops, cfg, w, x_XD)
    for layer in w.layers:
        x_XD = tile_layer(ops, cfg, layer, w.rope, x_XD)
    x_XD = ops.layer_norm(x_XD, w.ln_post, w.ln_post_bias, cfg.norm_eps)
    h_IF = ops.gelu(ops.linear(ops.gather(x_XD), w.c_fc))
    return ops.linear(ops.gelu(ops.linear(h_IF, w.c_proj)), w.vision_projection)


def _encode_llama32(ops: Any, cfg: Llama32VisionConfig, w: VisionWeights, x_XD: Any) -> Any:
    """Layers, gated global layers, and the inputs of some of the former beside the result."""
    x_XD, inner_XD = ops.mask_rows(x_XD), []
    for i, layer in enumerate(w.layers):
        if i in cfg.intermediate_layers:
            inner_XD.append(ops.gather(x_XD))
        x_XD = tile_layer(ops, cfg, layer, None, x_XD)
    x_XD = ops.layer_norm(x_XD, w.ln_post, w.ln_post_bias, cfg.norm_eps)
    x_XD = ops.add(x_XD, ops.given("tiles"))
    for layer in w.global_layers:
        x_XD = tile_layer(ops, cfg, layer, None, x_XD)
    return ops.linear(ops.join(ops.gather(x_XD), inner_XD), w.vision_projection, w.vision_projection_bias)


def tile_layer(ops: Any, cfg: VisionConfig, w: TileLayerWeights, rope: Any, x_XD: Any) -> Any:
    """Attention over tiles and a feed-forward network, gated where there are gates -> [X, D]."""
    head_dim = cfg.dim // cfg.n_heads
    h_XD = ops.layer_norm(x_XD, w.ln_1, w.ln_1_bias, cfg.norm_eps)
    q_XHC, k_XHC = ops.linear(h_XD, w.wq, w.wq_bias), ops.linear(h_XD, w.wk, w.wk_bias)
    if rope is not None:
        q_XHC, k_XHC = ops.rope(q_XHC, cfg.n_heads, rope), ops.rope(k_XHC, cfg.n_heads, rope)
    v_XHC = ops.linear(h_XD, w.wv, w.wv_bias)
    o_XHC = ops.attend_tiles(q_XHC, k_XHC, v_XHC, head_dim, head_dim**-0.5)
    x_XD = ops.add(x_XD, ops.linear(o_XHC, w.wo, w.wo_bias), w.gate_attn)
    h_XD = ops.layer_norm(x_XD, w.ln_2, w.ln_2_bias, cfg.norm_eps)
    h_XF = ops.gelu(ops.linear(h_XD, w.c_fc, w.c_fc_bias))
    return ops.add(x_XD, ops.linear(h_XF, w.c_proj, w.c_proj_bias), w.gate_ffn)


def cross_keys(ops: Any, cfg: ModelConfig, layers: Sequence[Any], y_IE: Any) -> list[tuple[Any, Any]]:
    """Keys and values [I, K*C] of an encoded image for each of block.CrossLayerWeights."""
    return [
        (
            ops.head_norm(ops.linear(y_IE, w.wk), cfg.head_dim, cfg.norm_eps, w.k_norm),
            ops.linear(y_IE, w.wv),
        )
        for w in layers
    ]


def seen_from(positions: Sequence[int]) -> list[tuple[int, int | None]]:
    """For images at rising `positions`: the first position that sees each, and the first that does not.

    A token sees the last image at or before it, and those that stand directly before that one; None is the
    end of the sequence (llama-models, create_vision_mask). With several images Meta's code lets the mask of
    the last ones end with the prompt, against its own comment; transformers extends it over the answer, and
    so do we.
    """
    ends: list[int | None] = [None] * len(positions)
    for i in range(len(positions) - 2, -1, -1):
        adjacent = positions[i + 1] == positions[i] + 1
        ends[i] = ends[i + 1] if adjacent else positions[i + 1]
    return list(zip(positions, ends, strict=True))


def n_positions(cfg: ModelConfig, image: Image) -> int:
    """How many positions an image takes in a sequence; BadValue if it was not prepared for this model."""
    v = cfg.vision
    if v is None:
        raise BadValue("this model sees no images; choose one with vision, such as llama-3.2-11b-vision")
    found = tuple(image.pixels.shape)
    grid = (image.rows, image.columns)
    n = image.rows * image.columns
    if isinstance(v, Llama32VisionConfig):
        good, grids = grid in v.aspect_ratios, f"at most {v.max_tiles} tiles"
    else:
        good, grids = min(grid) > 0 and n <= v.max_tiles, f"at most {v.max_tiles} tiles beside a thumbnail"
        n += n > 1
    expected = (n, 3, v.tile_size, v.tile_size)
    if not good or found != expected:
        raise BadValue(
            f"an image of this model is a grid of {grids}, each 3 x {v.tile_size} x {v.tile_size}; found a "
            f"grid of {grid[0]} x {grid[1]} with pixels of shape {found}; prepare it for this model"
        )
    return 1 if isinstance(v, Llama32VisionConfig) else n * v.tokens_per_tile
