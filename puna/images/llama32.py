"""Pictures for Llama 3.2 Vision: a grid of at most four tiles, in CLIP's range of values.

Source: VariableSizeImageTransform in llama3/multimodal/image_transform.py of Meta's llama-models.
"""

from __future__ import annotations

from puna.core import Image
from puna.images.tiling import Picture, cut, normalized
from puna.model.vision_config import Llama32VisionConfig

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def tile(picture: Picture, config: Llama32VisionConfig) -> Image:
    """An RGB picture as tiles [rows * columns, 3, tile_size, tile_size]."""
    tiles_NSSC, rows, columns = cut(picture, config.tile_size, config.max_tiles)
    return normalized(tiles_NSSC, rows, columns, MEAN, STD)
