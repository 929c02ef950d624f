"""Writes images.json: into which tiles Meta's own code cuts pictures, and some of the values in them.

    pip install torch torchvision llama-models==0.3.0 Pillow
    python tests/golden/make_images.py

`grids` has [width, height, rows, columns of Llama 4, the same of Llama 3.2 at 560]. `values` has of the
picture that `picture` below draws at that size [flat index, value] pairs out of all tiles.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import torch
from llama_models.llama3.multimodal.image_transform import VariableSizeImageTransform as Llama32
from llama_models.llama4.preprocess import ResizeNormalizeImageTransform as Thumbnail
from llama_models.llama4.preprocess import VariableSizeImageTransform as Llama4
from PIL import Image

SIZES = [
    (1, 1), (1, 500), (560, 560), (561, 559), (336, 336), (336, 337), (672, 336), (1120, 560), (2240, 560),
    (5376, 336), (1344, 1344), (1345, 1344), (4000, 3000), (3000, 4000), (1000, 333), (333, 1000),
]  # fmt: skip
DRAWN = [(1, 1), (5, 5), (100, 60), (561, 559), (1000, 333), (700, 1100)]


def picture(width: int, height: int) -> Image.Image:
    y, x, c = np.ogrid[:height, :width, :3]
    return Image.fromarray(((x * 7 + y * 13 + c * 50 + x * y // 5) % 256).astype(np.uint8))


def llama4(drawn: Image.Image) -> tuple[torch.Tensor, tuple[int, int]]:
    tiles, grid = Llama4(336)(drawn, 16)
    return (tiles if len(tiles) == 1 else torch.cat([tiles, Thumbnail(336, 336)(drawn)[None]])), grid


def llama32(drawn: Image.Image, side: int = 560) -> tuple[torch.Tensor, tuple[int, int]]:
    return Llama32(side)(drawn, 4)  # type: ignore[no-any-return]


def grid(transform: Llama32 | Llama4, size: tuple[int, int], most: int) -> list[int]:
    choices = torch.tensor(transform.find_supported_resolutions(most, transform.size))
    width, height = transform.get_best_fit(size, choices)
    return [height // transform.size, width // transform.size]


def sample(tiles: torch.Tensor, rng: random.Random) -> list[list[float]]:
    flat = tiles.flatten()
    return [[i, round(flat[i].item(), 6)] for i in sorted(rng.sample(range(len(flat)), 40))]


def main() -> None:
    rng = random.Random(0)
    sizes = SIZES + [(rng.randint(1, 6000), rng.randint(1, 6000)) for _ in range(150)]
    four, three = Llama4(336), Llama32(560)
    data = {
        "grids": [[*size, *grid(four, size, 16), *grid(three, size, 4)] for size in sizes],
        "values": [
            {"size": size, "model": name, "shape": [*tiles.shape], "at": sample(tiles, rng)}
            for size in DRAWN
            for name, cut in (("llama4", llama4), ("llama3.2", llama32))
            for tiles in [cut(picture(*size))[0]]
        ],
    }
    file = Path(__file__).with_name("images.json")
    file.write_text(json.dumps(data, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
