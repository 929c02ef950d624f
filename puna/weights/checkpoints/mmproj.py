"""Vision files of GGUF models (mmproj): which belongs to a text file, and what it says of the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from puna.core import BadFile, Unsupported
from puna.model.config import ModelConfig
from puna.model.read_clip import ARCHITECTURE, from_clip
from puna.model.vision_config import Llama4VisionConfig, Llama32VisionConfig, VisionConfig
from puna.weights.describe.pictures import pixel_range
from puna.weights.files.gguf import GgufFile
from puna.weights.files.values import Value, ValueType
from puna.weights.pull.sources import choose_mmproj

SEEING = ("llama4", "mllama")  # architectures of text files that a vision file may belong to


def name_for(model: str) -> str:
    """The name of the vision file to a text file `model`.gguf, as llama.cpp names them."""
    return f"mmproj-{model}.gguf"


def beside(path: Path) -> Path | None:
    """The vision file in the folder of a text file, if any; BadInput where it could be another model's."""
    names = [other.name for other in path.parent.iterdir() if other.is_file()]
    remedy = "name the one of this model with --mmproj"
    chosen = choose_mmproj(names, path.name, str(path.parent), remedy)
    return None if chosen is None else path.parent / chosen


def join(
    config: ModelConfig, metadata: Mapping[str, Any], path: Path | None
) -> tuple[ModelConfig, GgufFile | None]:
    """The model of a text file with the encoder of the vision file at `path`, opened; without one, as it is.

    Raises BadFile for a file of another model, Unsupported for what is no vision file of a Llama.
    """
    if config.vision is not None:
        raise Unsupported(
            "the image encoder is in the text file, as Ollama writes it, with its gates computed and its "
            "queries in another order; use the release in safetensors"
        )
    if path is None:
        return config, None
    file = GgufFile.open(path)
    try:
        vision = encoder_of(file, metadata["general.architecture"], config.dim)
    except BadFile as error:
        file.close()
        raise type(error)(f"{path}: {error}") from None
    return replace(config, vision=vision), file


def encoder_of(file: GgufFile, architecture: str, text_dim: int) -> VisionConfig:
    """What a vision file says of its encoder; BadFile unless it is for that kind and width of text model."""
    shapes = {tensor.name: tensor.shape for tensor in file.raw_tensors()}
    vision = from_clip(file.metadata, shapes, text_dim)
    kind = SEEING[isinstance(vision, Llama32VisionConfig)]
    if kind != architecture:
        raise BadFile(
            f"it is the vision file of a {kind}, and the text file is a {architecture}; choose the mmproj "
            "file of the same model"
        )
    return vision


def vision_metadata(vision: VisionConfig, text_dim: int) -> dict[str, Value]:
    """What from_clip of model/read_clip.py reads back as `vision`."""
    is_mllama = isinstance(vision, Llama32VisionConfig)
    numbers = {
        "image_size": vision.tile_size,
        "patch_size": vision.patch_size,
        "embedding_length": vision.dim,
        "feed_forward_length": vision.ffn_dim,
        "projection_dim": text_dim,
        "block_count": vision.n_layers,
        "attention.head_count": vision.n_heads,
    }
    entries = {
        "general.architecture": Value.of(ValueType.STRING, ARCHITECTURE),
        "general.type": Value.of(ValueType.STRING, "mmproj"),
        "general.quantization_version": Value.of(ValueType.UINT32, 2),
        "clip.has_vision_encoder": Value.of(ValueType.BOOL, True),
        "clip.projector_type": Value.of(ValueType.STRING, "mllama" if is_mllama else "llama4"),
        "clip.use_gelu": Value.of(ValueType.BOOL, True),
        "clip.vision.attention.layer_norm_epsilon": Value.of(ValueType.FLOAT32, vision.norm_eps),
    }
    mean, std = pixel_range(vision)
    entries["clip.vision.image_mean"] = Value.array(ValueType.FLOAT32, list(mean))
    entries["clip.vision.image_std"] = Value.array(ValueType.FLOAT32, list(std))
    if isinstance(vision, Llama32VisionConfig):
        numbers |= {"global.block_count": vision.n_global_layers, "max_num_tiles": vision.max_tiles}
        entries["clip.vision.intermediate_layers_indices"] = Value.array(
            ValueType.UINT32, list(vision.intermediate_layers)
        )
    else:
        _refuse_unsaid(vision)
        numbers["projector.scale_factor"] = round(1 / vision.pixel_shuffle)
    return entries | {f"clip.vision.{key}": Value.of(ValueType.UINT32, n) for key, n in numbers.items()}


def _refuse_unsaid(vision: Llama4VisionConfig) -> None:
    usual = Llama4VisionConfig()
    for name in ("rope_theta", "max_tiles"):
        found, value = getattr(vision, name), getattr(usual, name)
        if found != value:
            raise Unsupported(
                f"a vision file of llama.cpp stands for a {name} of {value}, and this model's is {found}; "
                "convert to hf"
            )
