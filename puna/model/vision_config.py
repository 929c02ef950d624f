"""Image encoders as a checkpoint describes them: the two kinds that Llama has had.

Llama 3.2 Vision keeps images outside of the sequence: text reaches them by cross-attention layers. Llama 4
puts projected patches among the embeddings of the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from puna.model.record import require


@dataclass(frozen=True, slots=True)
class Llama32VisionConfig:
    """The tiled encoder of Llama 3.2 Vision, or mllama (llama-models, llama3/multimodal/model.py)."""

    tile_size: int  # pixels, both sides
    dim: int = 1280
    n_layers: int = 32  # local layers
    n_global_layers: int = 8  # gated, after the local ones
    n_heads: int = 16
    ffn_dim: int = 5120
    patch_size: int = 14  # pixels, both sides
    max_tiles: int = 4
    intermediate_layers: tuple[int, ...] = (3, 7, 15, 23, 30)  # local layers whose inputs join the output
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        _check_encoder(self.dim, self.n_layers, self.n_heads, self.ffn_dim, self.norm_eps)
        _check_patches(self.tile_size, self.patch_size)
        require(
            0 <= self.n_global_layers < 2**16, "vision n_global_layers", "0 or more", self.n_global_layers
        )
        require(0 < self.max_tiles <= 64, "vision max_tiles", "from 1 to 64", self.max_tiles)
        inside = all(0 <= i < self.n_layers for i in self.intermediate_layers)
        rising = tuple(sorted(set(self.intermediate_layers))) == self.intermediate_layers
        expected = f"rising numbers below {self.n_layers}"
        require(inside and rising, "vision intermediate_layers", expected, self.intermediate_layers)

    @property
    def tokens_per_tile(self) -> int:
        """Patches and the class token."""
        return (self.tile_size // self.patch_size) ** 2 + 1

    @property
    def max_tokens(self) -> int:
        """Positions of one image in the cross-attention cache, whatever the number of its tiles."""
        return self.max_tiles * self.tokens_per_tile

    @property
    def output_dim(self) -> int:
        """Width before the projection: the last layer's and the intermediate layers' features."""
        return self.dim * (1 + len(self.intermediate_layers))

    @property
    def aspect_ratios(self) -> tuple[tuple[int, int], ...]:
        """Grids of tiles (rows, columns) that an image may become, in the order of their embeddings."""
        most = self.max_tiles
        return tuple((h, w) for h in range(1, most + 1) for w in range(1, most + 1) if h * w <= most)


@dataclass(frozen=True, slots=True)
class Llama4VisionConfig:
    """The encoder of Llama 4 (llama-models, llama4/vision): 2-D rope, pixel shuffle, adapter."""

    tile_size: int = 336  # pixels, both sides
    dim: int = 1408
    n_layers: int = 34
    n_heads: int = 16
    ffn_dim: int = 5632
    patch_size: int = 14  # pixels, both sides
    pixel_shuffle: float = 0.5  # side of the grid of patches after by before
    adapter_dim: int = 4096  # of both layers of the adapter, and of what the projection reads
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    max_tiles: int = 16  # beside the thumbnail

    def __post_init__(self) -> None:
        _check_encoder(self.dim, self.n_layers, self.n_heads, self.ffn_dim, self.norm_eps)
        _check_patches(self.tile_size, self.patch_size)
        require(0 < self.adapter_dim < 2**31, "vision adapter_dim", "1 or more", self.adapter_dim)
        require(0 < self.max_tiles < 2**16, "vision max_tiles", "from 1 to 65535", self.max_tiles)
        require(
            self.dim // self.n_heads % 4 == 0,
            "vision head width",
            "a multiple of 4, as rope in two dimensions needs",
            self.dim // self.n_heads,
        )
        good = isfinite(self.rope_theta) and self.rope_theta > 1
        require(good, "vision rope_theta", "above 1", self.rope_theta)
        side = self.tile_size // self.patch_size
        good = 0 < self.pixel_shuffle <= 1 and side * self.pixel_shuffle % 1 == 0
        good = good and (1 / self.pixel_shuffle) % 1 == 0
        expected = f"a fraction 1/n that divides a grid of {side} patches"
        require(good, "vision pixel_shuffle", expected, self.pixel_shuffle)

    @property
    def tokens_per_tile(self) -> int:
        """Positions that one tile takes in the sequence."""
        return round(self.tile_size // self.patch_size * self.pixel_shuffle) ** 2

    @property
    def shuffled_dim(self) -> int:
        """Width of a position after pixel shuffle."""
        return round(self.dim / self.pixel_shuffle**2)


VisionConfig = Llama32VisionConfig | Llama4VisionConfig


def _check_encoder(dim: int, n_layers: int, n_heads: int, ffn_dim: int, norm_eps: float) -> None:
    sizes = {"dim": dim, "n_heads": n_heads, "ffn_dim": ffn_dim}
    for name, value in sizes.items():
        require(0 < value < 2**31, f"vision {name}", "from 1 to 2147483647", value)
    require(0 < n_layers < 2**16, "vision n_layers", "from 1 to 65535", n_layers)
    require(dim % n_heads == 0, "vision dim, n_heads", "whole heads", (dim, n_heads))
    require(0 < norm_eps < 1, "vision norm_eps", "above 0 and below 1", norm_eps)


def _check_patches(tile_size: int, patch_size: int) -> None:
    require(0 < tile_size < 2**16, "vision tile_size", "from 1 to 65535", tile_size)
    good = 0 < patch_size <= tile_size and tile_size % patch_size == 0
    require(good, "vision patch_size", f"a divisor of the tile's {tile_size} pixels", patch_size)
