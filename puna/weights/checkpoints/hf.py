"""Checkpoints as Hugging Face's folders have them: config.json and safetensors files.

What their tensors are of ours, model/incoming.py knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from puna.core import BadFile
from puna.model.config import ModelConfig, from_hf
from puna.weights.blocks.tensor import RawTensor
from puna.weights.files.safetensors import SafetensorsFile, open_sharded, read_json
from puna.weights.folder import INDEX
from puna.weights.prequantized.config import read_quantization
from puna.weights.prequantized.matrices import DTYPES, put_together


def open_files(folder: Path) -> list[SafetensorsFile]:
    """The weights of a folder: all files of its index, or its only file."""
    if (folder / INDEX).exists():
        return open_sharded(folder / INDEX)
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise BadFile(
            f"expected model.safetensors, or {INDEX} with the files that it names, found {len(found)} "
            ".safetensors files without an index; get the index too"
        )
    return [SafetensorsFile.open(found[0])]


def read_tensors(folder: Path, files: Sequence[SafetensorsFile]) -> tuple[dict[str, RawTensor], str]:
    """The tensors of a folder by their names, and how they are quantized ("" where they are not).

    The parts of a quantized matrix are one tensor (prequantized/matrices.py).
    """
    found = read_quantization(read_json(folder / "config.json"))
    parts = DTYPES if found else ()
    stored = {tensor.name: tensor for file in files for tensor in file.raw_tensors(parts)}
    return (put_together(found, stored), str(found)) if found else (stored, "")


def read_config(folder: Path) -> ModelConfig:
    """What config.json says of the model."""
    return from_hf(read_json(folder / "config.json"))
