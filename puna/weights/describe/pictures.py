"""How pictures become tiles, as a vision file of GGUF and the folder of transformers' processors state it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puna.model.vision_config import Llama32VisionConfig, VisionConfig

_BILINEAR = 2  # Pillow's number of the filter


def pixel_range(vision: VisionConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each colour, by which pixels from 0 to 1 are normalized.

    Source: preprocessor_config.json of the releases; Llama 3.2 Vision has CLIP's.
    """
    if isinstance(vision, Llama32VisionConfig):
        return (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def hf_processor_files(vision: VisionConfig) -> Mapping[str, dict[str, Any]]:
    """By file name, what AutoProcessor of transformers reads beside the tokenizer.

    The classes are named as version 4 has them, which version 5 knows as well.
    """
    mean, std = pixel_range(vision)
    pixels: dict[str, Any] = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "resample": _BILINEAR,
        "rescale_factor": 1 / 255,
        "size": {"height": vision.tile_size, "width": vision.tile_size},
    }
    if isinstance(vision, Llama32VisionConfig):
        pixels |= {
            "image_processor_type": "MllamaImageProcessor",
            "processor_class": "MllamaProcessor",
            "do_pad": True,
            "max_image_tiles": vision.max_tiles,
        }
        return {"preprocessor_config.json": pixels}
    pixels |= {
        "image_processor_type": "Llama4ImageProcessorFast",
        "processor_class": "Llama4Processor",
        "max_patches": vision.max_tiles,
        "resize_to_max_canvas": False,
    }
    processor = {
        "processor_class": "Llama4Processor",
        "patch_size": vision.patch_size,
        "pixel_shuffle_ratio": vision.pixel_shuffle,
    }
    return {"preprocessor_config.json": pixels, "processor_config.json": processor}
