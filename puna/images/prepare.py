"""From whatever a caller has of a picture to the image of a model."""

from __future__ import annotations

import numpy as np

from puna.core import BadInput, Image
from puna.images import llama4, llama32
from puna.images.decode import Picture, open_picture
from puna.images.decode import Source as FileSource
from puna.model.vision_config import Llama4VisionConfig, VisionConfig

Source = FileSource | Image


def prepare(image: Source, config: VisionConfig) -> Image:
    """The image that a model with the encoder `config` takes.

    `image` is a file by its path or as bytes (JPEG, PNG, WebP or GIF), a picture of Pillow, or an image that
    was prepared before, which comes back as it is. Raises BadFile for a file that cannot be read as a
    picture, BadInput for a picture that cannot be shown to a model, or an image of other tiles.
    """
    if isinstance(image, Image):
        _check(image, config)
        return image
    picture: Picture = open_picture(image)
    if isinstance(config, Llama4VisionConfig):
        return llama4.tile(picture, config)
    return llama32.tile(picture, config)


def _check(image: Image, config: VisionConfig) -> None:
    """Refuse what was prepared for another model."""
    n_tiles, side = image.rows * image.columns, config.tile_size
    has_thumbnail = isinstance(config, Llama4VisionConfig) and n_tiles > 1
    expected = (n_tiles + has_thumbnail, 3, side, side)
    is_right = image.pixels.shape == expected and image.pixels.dtype == np.float32
    if not is_right or not 1 <= n_tiles <= config.max_tiles:
        raise BadInput(
            f"an image of {image.rows} by {image.columns} tiles must have pixels {expected} of float32 and "
            f"at most {config.max_tiles} tiles for this model, found {image.pixels.shape} of "
            f"{image.pixels.dtype}; prepare it for this model"
        )
    if not isinstance(image.digest, bytes):
        raise BadInput(
            f"the digest of an image must be bytes, found {image.digest!r:.40}; prepare() makes it"
        )
    if not np.isfinite(image.pixels).all():
        raise BadInput(
            "pixels of an image must be numbers, found infinite ones or NaN; prepare the picture again"
        )
