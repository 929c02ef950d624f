"""How both generations cut a picture into tiles; they differ in constants, and Llama 4 adds a thumbnail.

A picture is scaled into the grid of tiles that shrinks it least, its aspect kept, never enlarged beyond one
tile; what remains at the right and below stays black.

Source: VariableSizeImageTransform of Meta's llama-models at a9c89c4 (llama3/multimodal/image_transform.py and
llama4/preprocess.py), where sizes are (width, height); all operations on floats are those done there, so that
equal pictures get equal pixels.

Shapes: N tiles, S pixels of a tile's side, C three colours, V the 256 values of a byte.
"""

from __future__ import annotations

from hashlib import blake2b
from math import floor

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pil

from puna.core import Image

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Picture = pil.Image


def best_grid(width: int, height: int, side: int, max_tiles: int) -> tuple[int, int]:
    """Rows and columns of the tiles for a picture of `width` by `height` pixels.

    Of the grids in which the picture need not shrink, the one that would enlarge it least; else the one in
    which it shrinks least. Among grids of equal scale the one of fewest tiles.
    """
    grids = [(r, c) for r in range(1, max_tiles + 1) for c in range(1, max_tiles // r + 1)]
    scales = {(r, c): min(c * side / width, r * side / height) for r, c in grids}
    enlarging = [scale for scale in scales.values() if scale >= 1]
    chosen = min(enlarging) if enlarging else max(scales.values())
    return min((grid for grid in grids if scales[grid] == chosen), key=lambda grid: grid[0] * grid[1])


def fitted_size(width: int, height: int, side: int, rows: int, columns: int) -> tuple[int, int]:
    """Width and height of the picture inside a grid. A side that would vanish is one pixel."""
    most_across = min(max(width, side), columns * side)
    most_down = min(max(height, side), rows * side)
    across, down = most_across / width, most_down / height
    if across < down:
        return most_across, max(min(floor(height * across), most_down), 1)
    return max(min(floor(width * down), most_across), 1), most_down


def cut(picture: Picture, side: int, max_tiles: int) -> tuple[Bytes, int, int]:
    """The tiles of an RGB picture, row by row [N, S, S, C], and the rows and columns of their grid."""
    rows, columns = best_grid(*picture.size, side, max_tiles)
    canvas = pil.new("RGB", (columns * side, rows * side))
    canvas.paste(resized(picture, fitted_size(*picture.size, side, rows, columns)))
    tiles = np.asarray(canvas).reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    return np.ascontiguousarray(tiles).reshape(-1, side, side, 3), rows, columns


def resized(picture: Picture, size: tuple[int, int]) -> Picture:
    """Bilinear, over all pixels that fall into one where it shrinks, as Pillow does it."""
    return picture.resize(size, pil.Resampling.BILINEAR)


def normalized(
    tiles_NSSC: Bytes, rows: int, columns: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Image:
    """The image of these tiles, its values (v / 255 - mean) / std for each colour."""
    values_V = np.arange(256, dtype=np.float32) / np.float32(255)
    pixels_NCSS = np.empty((len(tiles_NSSC), 3, *tiles_NSSC.shape[1:3]), np.float32)
    for c in range(3):
        table_V: Floats = (values_V - np.float32(mean[c])) / np.float32(std[c])
        np.take(table_V, tiles_NSSC[..., c], out=pixels_NCSS[:, c], mode="clip")  # "raise" would copy
    head = repr((tiles_NSSC.shape, rows, columns, mean, std)).encode()
    digest = blake2b(head + tiles_NSSC.tobytes(), digest_size=32).digest()
    return Image(pixels_NCSS, rows, columns, digest)
