"""Checkpoints as Hugging Face's folders have them: config.json and safetensors files.

What their tensors are of ours, model/incoming.py knows.
"""

from __future__ import annotations

from pathlib import Path

from puna.core import BadFile, Unsupported
from puna.model.config import ModelConfig, from_hf
from puna.weights.folder import INDEX
from puna.weights.safetensors import SafetensorsFile, open_sharded, read_json


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


def read_config(folder: Path) -> ModelConfig:
    """What config.json says; raises Unsupported where the weights are quantized in a way of their own."""
    config = read_json(folder / "config.json")
    quantization = config.get("quantization_config") or config.get("compression_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise Unsupported(
            f"config.json says that the weights are quantized ({method!r:.40}), and Puna reads F32, F16 and "
            "BF16 from such folders; use the release in BF16, or a GGUF file of the model"
        )
    return from_hf(config)
