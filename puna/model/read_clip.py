"""The metadata of a vision file of llama.cpp (mmproj): GGUF of architecture `clip`.

Its projector type says which encoder it is. `llama4` is llama.cpp's own (conversion of Llama4VisionModel);
for Llama 3.2 Vision llama.cpp has none, so the type `mllama` and its keys are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puna.core import BadFile, Unsupported
from puna.model.record import Record, require
from puna.model.vision_config import Llama4VisionConfig, Llama32VisionConfig, VisionConfig

ARCHITECTURE = "clip"


def from_clip(
    metadata: Mapping[str, Any], tensor_shapes: Mapping[str, tuple[int, ...]], text_dim: int
) -> VisionConfig:
    """The image encoder of a vision file. `text_dim` is the width of the model that it is for.

    Raises BadFile for one made for a model of another width, Unsupported for another kind of encoder.
    """
    record = Record(metadata, "metadata of the vision file")
    arch = record.text("general.architecture")
    if arch != ARCHITECTURE:
        raise Unsupported(
            f"a vision file (mmproj) is of architecture {ARCHITECTURE!r}, this one's is {arch!r}; choose the "
            "mmproj file of the model"
        )
    kind = record.text("clip.projector_type", record.text("clip.vision.projector_type", ""))
    if kind not in ("llama4", "mllama"):
        raise Unsupported(
            f"the vision file's projector type is {kind!r}, and Puna reads 'llama4' and 'mllama'; choose the "
            "mmproj file of a Llama"
        )
    width = record.integer("clip.vision.projection_dim", text_dim)
    if width != text_dim:
        raise BadFile(
            f"the vision file is for a model of width {width}, and the text file's is {text_dim}; choose the "
            "mmproj file of the same model"
        )
    return _llama4(record, tensor_shapes) if kind == "llama4" else _mllama(record)


def _common(record: Record) -> dict[str, Any]:
    record.refuse_unless("clip.use_gelu", True, "another activation of the image encoder")
    return {
        "tile_size": record.integer("clip.vision.image_size"),
        "dim": record.integer("clip.vision.embedding_length"),
        "n_layers": record.integer("clip.vision.block_count"),
        "n_heads": record.integer("clip.vision.attention.head_count"),
        "ffn_dim": record.integer("clip.vision.feed_forward_length"),
        "patch_size": record.integer("clip.vision.patch_size"),
        "norm_eps": record.number("clip.vision.attention.layer_norm_epsilon", 1e-5),
    }


def _llama4(record: Record, tensor_shapes: Mapping[str, tuple[int, ...]]) -> Llama4VisionConfig:
    projection = tensor_shapes.get("mm.model.fc.weight", ())
    require(len(projection) == 2, "mm.model.fc.weight", "a matrix", f"shape {projection}")
    factor = record.integer("clip.vision.projector.scale_factor")
    require(factor > 0, "clip.vision.projector.scale_factor", "1 or more", factor)
    return Llama4VisionConfig(**_common(record), pixel_shuffle=1 / factor, adapter_dim=projection[1])


def _mllama(record: Record) -> Llama32VisionConfig:
    return Llama32VisionConfig(
        **_common(record),
        n_global_layers=record.integer("clip.vision.global.block_count"),
        max_tiles=record.integer("clip.vision.max_num_tiles"),
        intermediate_layers=record.integers("clip.vision.intermediate_layers_indices"),
    )
