"""Tokens, template, encoders and pictures by which a tiny text model is asked as if it saw images."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image as pil

from puna import LLM
from puna.core import Image
from puna.model.vision_config import Llama4VisionConfig, Llama32VisionConfig, VisionConfig

TOKENS = {
    "llama4": ["<|image_start|>", "<|image_end|>", "<|tile_x_separator|>", "<|tile_y_separator|>",
               "<|image|>", "<|patch|>"],
    "llama3.2": ["<|image|>"],
}  # fmt: skip
TEMPLATE = """\
{% if tools %}{% for tool in tools %}{{ tool.function.name + ' ' }}{% endfor %}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + ':' }}
{%- if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}
{%- if part.type == 'image' %}{{ '<|image|>' }}{% else %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}{{ '<|im_end|>' }}{% endfor %}"""

# four tokens a tile, and one for each picture
LLAMA4 = Llama4VisionConfig(tile_size=56, dim=16, n_layers=1, n_heads=2, ffn_dim=8, adapter_dim=8)
LLAMA32 = Llama32VisionConfig(28, dim=16, n_layers=2, n_heads=2, ffn_dim=8, intermediate_layers=(0,))


def let_see(llm: LLM, vision: VisionConfig, **more: Any) -> None:
    """Tell a loaded text model that it sees, so that requests with images reach its engine."""
    llm.config = replace(llm.config, vision=vision, **more)

    def n_positions(image: Image) -> int:
        return len(image.pixels) * vision.tokens_per_tile if isinstance(vision, Llama4VisionConfig) else 1

    llm._engine._engine._executor.n_image_positions = n_positions  # type: ignore[attr-defined]


def picture(width: int = 100, height: int = 50) -> pil.Image:
    y, x, c = np.ogrid[:height, :width, :3]
    return pil.fromarray(((x * 3 + y * 5 + c * 60) % 256).astype(np.uint8))


def png(drawn: pil.Image | None = None) -> bytes:
    out = BytesIO()
    (drawn or picture()).save(out, "PNG")
    return out.getvalue()
