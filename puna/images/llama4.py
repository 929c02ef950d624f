"""Pictures for Llama 4: a grid of up to 16 tiles, then the whole picture squeezed into one more.

Source: llama4/preprocess.py and ChatFormat of llama4/chat_format.py in Meta's llama-models. A picture that
fits into one tile has no thumbnail.
"""

from __future__ import annotations

import numpy as np

from puna.core import Image
from puna.images.tiling import Picture, cut, normalized, resized
from puna.model.vision_config import Llama4VisionConfig

MEAN = STD = (0.5, 0.5, 0.5)


def tile(picture: Picture, config: Llama4VisionConfig) -> Image:
    """An RGB picture as tiles [rows * columns, 3, tile_size, tile_size], with the thumbnail if several."""
    side = config.tile_size
    tiles_NSSC, rows, columns = cut(picture, side, config.max_tiles)
    if len(tiles_NSSC) > 1:
        thumbnail_1SSC = np.asarray(resized(picture, (side, side)))[None]
        tiles_NSSC = np.concatenate([tiles_NSSC, thumbnail_1SSC])
    return normalized(tiles_NSSC, rows, columns, MEAN, STD)
