"""What a configuration costs: parameters in all and for one token, and bytes of the cache at any context."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from puna.core import BadValue, closest
from puna.model.config import ModelConfig
from puna.model.names import shapes
from puna.model.vision_config import Llama32VisionConfig

# bytes of one number of the cache; q8_0 keeps a 16-bit scale for every 32
CACHE_BYTES: Mapping[str, float] = {"bf16": 2, "f16": 2, "f32": 4, "q8_0": 34 / 32}


def local_window(cfg: ModelConfig, multiple: int) -> int:
    """Positions of a chunk of attention whose layers can have cache blocks of their own: whole multiples of
    what an executor asks for. 0 where there are none.
    """
    chunk = cfg.attention_chunk or 0
    return 0 if chunk % multiple else chunk


def local_layers(cfg: ModelConfig) -> list[int]:
    """The layers with chunked attention."""
    return [i for i in range(cfg.n_layers) if cfg.chunk(i)]


def local_positions(window: int, n_tokens: int, step_tokens: int) -> int:
    """Positions that layers with chunked attention keep of a cache of `n_tokens` for all sequences together.

    A sequence of n tokens needs n positions in the other layers, and min(n, window + step_tokens) in these:
    its chunk, and what a step of step_tokens runs beyond. Two sequences can always be as long as they like
    here; of more, a quarter of the cache's tokens may be at the ends of sequences at once, so that many short
    sequences run out of these positions first. All n_tokens where that saves nothing, or window is 0.
    """
    if not window:
        return n_tokens
    return min(n_tokens, max(n_tokens // 4, 2 * (window + step_tokens)))


def n_parameters(cfg: ModelConfig) -> int:
    """All of them, image encoder included. A tied output counts once."""
    return sum(prod(shape) for _, shape in shapes(cfg))


def n_active(cfg: ModelConfig) -> int:
    """Parameters of the text decoder that one token meets: all but the experts it is not sent to."""
    return sum(_active(cfg, name, shape) for name, shape in shapes(cfg))


def _active(cfg: ModelConfig, name: str, shape: tuple[int, ...]) -> int:
    if name.startswith("vision"):
        return 0
    if cfg.experts is not None and ".experts_" in name:
        return prod(shape) // cfg.experts.n_experts * cfg.experts.n_active
    return prod(shape)


def kv_bytes(cfg: ModelConfig, context: int, cache_type: str = "bf16", n_images: int = 0) -> int:
    """Bytes of the keys and values of one sequence of `context` positions and `n_images` images.

    Layers with chunked attention keep at most one chunk. An image of Llama 3.2 Vision takes its positions in
    every cross-attention layer; Llama 4's are positions of the sequence. Raises BadValue for an unknown cache
    type.
    """
    if cache_type not in CACHE_BYTES:
        known = tuple(CACHE_BYTES)
        hint = closest(cache_type, known)
        raise BadValue(f"the cache type must be one of {', '.join(known)}, got {cache_type!r}{hint}")
    positions = sum(min(context, cfg.chunk(i) or context) for i in range(cfg.n_layers))
    if isinstance(cfg.vision, Llama32VisionConfig):
        positions += n_images * cfg.vision.max_tokens * len(cfg.cross_attention)
    return round(positions * 2 * cfg.n_kv_heads * cfg.head_dim * CACHE_BYTES[cache_type])


def image_bytes(cfg: ModelConfig, cache_type: str = "bf16") -> int:
    """Bytes of the largest encoded picture: keys and values of cross-attention, or embeddings in float32."""
    if cfg.vision is None:
        return 0
    if isinstance(cfg.vision, Llama32VisionConfig):
        return kv_bytes(cfg, 0, cache_type, n_images=1)
    return 4 * (cfg.vision.max_tiles + 1) * cfg.vision.tokens_per_tile * cfg.dim


def encoder_bytes(cfg: ModelConfig) -> int:
    """Bytes of the arrays in which the largest picture is encoded, at their peak.

    That is in the feed-forward network of a layer: float32 of what was prepared of the picture, the stream,
    its norm and the four of attention, twice of the wide rows, and of the intermediate layers; the wide rows
    once more as matrices read them, in 16 bits; keys and values of attention, likewise.
    """
    v = cfg.vision
    if v is None:
        return 0
    wanted = tables = 0
    if isinstance(v, Llama32VisionConfig):
        rows = v.max_tiles * -(-v.tokens_per_tile // 8) * 8  # whole multiples, missing tiles included
        wanted, tables = v.max_tokens * v.dim * len(v.intermediate_layers), 2
    else:
        patches = (v.tile_size // v.patch_size) ** 2 + 1
        rows, tables = (v.max_tiles + 1) * patches, 1
    floats = rows * (3 * v.patch_size**2 + (tables + 6) * v.dim + 2 * v.ffn_dim) + wanted
    keys = 2 * rows * v.n_heads * -(-v.dim // v.n_heads // 32) * 32
    return 4 * floats + 2 * (rows * v.ffn_dim + keys)
