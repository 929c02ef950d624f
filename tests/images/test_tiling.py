"""Tiles are Meta's: the grid always, and every value of it, as transformers' processor has them too."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as pil

from puna.core import BadInput, Image
from puna.images import prepare
from puna.images.decode import open_picture
from puna.images.llama32 import MEAN, STD
from puna.images.tiling import best_grid, fitted_size
from puna.model.vision_config import Llama4VisionConfig, Llama32VisionConfig, VisionConfig

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "images.json").read_text(encoding="utf-8"))
CONFIGS: dict[str, VisionConfig] = {
    "llama4": Llama4VisionConfig(),
    "llama3.2": Llama32VisionConfig(560),
}


def drawn(width: int, height: int) -> pil.Image:
    """The picture of golden/make_images.py."""
    y, x, c = np.ogrid[:height, :width, :3]
    return pil.fromarray(((x * 7 + y * 13 + c * 50 + x * y // 5) % 256).astype(np.uint8))


def test_grids_are_metas() -> None:
    for width, height, *expected in GOLDEN["grids"]:
        found = [*best_grid(width, height, 336, 16), *best_grid(width, height, 560, 4)]
        assert found == expected, (width, height)


@pytest.mark.parametrize("case", GOLDEN["values"], ids=lambda case: f"{case['model']}-{case['size']}")
def test_values_are_metas(case: dict[str, Any]) -> None:
    pixels = prepare(drawn(*case["size"]), CONFIGS[case["model"]]).pixels
    assert pixels.shape == tuple(case["shape"])
    assert pixels.dtype == np.float32
    for i, value in case["at"]:
        # another version of Pillow may round a byte otherwise
        assert pixels.flat[i] == pytest.approx(value, abs=0.02)


def photos() -> list[Any]:
    """Meta's own, where its package is installed."""
    package = importlib.util.find_spec("llama_models")
    if package is None or package.origin is None:
        return []
    return sorted((Path(package.origin).parent / "resources").glob("*.jp*g"))


@pytest.mark.parametrize("side", [448, 560])
def test_tiles_are_those_of_transformers(side: int) -> None:
    mllama = pytest.importorskip("transformers.models.mllama.image_processing_pil_mllama")
    processor = mllama.MllamaImageProcessorPil(
        size={"height": side, "width": side}, image_mean=MEAN, image_std=STD
    )
    config = Llama32VisionConfig(side)
    pictures = [drawn(*size) for size in [(1, 1), (1, 5000), (5000, 1), (561, 559), (900, 2000), (1300, 200)]]
    for picture in pictures + [open_picture(path) for path in photos()]:
        theirs = processor(picture, return_tensors="np")
        ours = prepare(picture, config)
        n = len(ours.pixels)
        assert theirs["num_tiles"] == [[n]]
        assert config.aspect_ratios[theirs["aspect_ratio_ids"][0, 0] - 1] == (ours.rows, ours.columns)
        assert np.array_equal(theirs["pixel_values"][0, 0, :n], ours.pixels)


def test_tiles_stand_row_by_row_and_the_thumbnail_last() -> None:
    colours = np.array([[0, 50, 100], [150, 200, 250]], np.uint8)
    picture = pil.fromarray(np.kron(colours, np.ones((336, 336), np.uint8))).convert("RGB")
    image = prepare(picture, Llama4VisionConfig())
    assert (image.rows, image.columns, image.pixels.shape) == (2, 3, (7, 3, 336, 336))
    for tile, colour in zip(image.pixels, colours.flat, strict=False):
        assert np.allclose(tile, colour / 127.5 - 1)
    corners = image.pixels[6, 0][[0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.allclose(corners, np.array([0, 100, 150, 250]) / 127.5 - 1, atol=1e-6)


def test_sides_that_would_vanish_are_a_pixel() -> None:
    assert fitted_size(1, 5000, 560, 4, 1) == (1, 2240)
    assert fitted_size(5000, 1, 336, 1, 16) == (5000, 1)
    assert fitted_size(10_000, 1, 336, 1, 16) == (5376, 1)


def test_equal_digests_are_equal_pixels() -> None:
    picture, config = drawn(400, 300), CONFIGS["llama4"]
    image = prepare(picture, config)
    assert image.digest == prepare(picture.copy(), config).digest
    other = picture.copy()
    other.putpixel((0, 0), (1, 2, 3))
    digests = {image.digest, prepare(other, config).digest, prepare(picture, CONFIGS["llama3.2"]).digest}
    # black pictures of one number of tiles in two grids
    tall, wide = (prepare(pil.new("RGB", size), config) for size in [(336, 672), (672, 336)])
    assert len(digests | {tall.digest, wide.digest}) == 5


def test_a_prepared_image_is_for_its_model() -> None:
    image = prepare(drawn(400, 300), CONFIGS["llama4"])
    assert prepare(image, CONFIGS["llama4"]) is image
    with pytest.raises(BadInput, match=r"must have pixels \(2, 3, 560, 560\) .* found \(3, 3, 336, 336\)"):
        prepare(image, CONFIGS["llama3.2"])
    cut = Image(image.pixels[:-1], image.rows, image.columns, image.digest)
    with pytest.raises(BadInput, match="prepare it for this model"):
        prepare(cut, CONFIGS["llama4"])
