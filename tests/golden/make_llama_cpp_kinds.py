"""Record which block format llama.cpp's quantizer gives each tensor, as llama_cpp_kinds.json.

    PYTHONPATH=. python tests/golden/make_llama_cpp_kinds.py

needs llama-cpp-python (0.3.36 made the stored file). Tiny random F32 models of several shapes are quantized
to each file type; only the tensor tables of the results are kept.
"""

from __future__ import annotations

import ctypes
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import llama_cpp

from puna.model.config import ModelConfig
from puna.model.names import shapes
from puna.weights.files.gguf import GgufFile
from puna.weights.load import write_checkpoint
from puna.weights.quantize.mixes import FILE_TYPES
from puna.weights.synthetic import synthetic_checkpoint

# name: layers, dim, heads, key/value heads, ffn_dim, tied
SHAPES: Mapping[str, tuple[int, int, int, int, int, bool]] = {
    "untied": (4, 256, 4, 2, 512, False),
    "tied": (30, 256, 4, 4, 256, True),
    "one layer": (1, 256, 4, 2, 256, False),
    "rows of 32s": (9, 96, 3, 1, 160, False),
    "rows of 32s, tied": (9, 96, 3, 1, 256, True),
    "rows of 8s": (3, 40, 5, 5, 72, False),
    "80 layers, grouped": (80, 256, 8, 1, 256, False),
    "80 layers, not grouped": (80, 256, 2, 2, 256, False),
    "126 layers": (126, 256, 8, 1, 256, False),
}


def config_of(shape: str) -> ModelConfig:
    n_layers, dim, n_heads, n_kv_heads, ffn_dim, tied = SHAPES[shape]
    return ModelConfig(
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=dim // n_heads,
        ffn_dim=ffn_dim,
        vocab_size=64,
        norm_eps=1e-5,
        rope_theta=10000.0,
        context_length=512,
        tied=tied,
    )


def quantized_kinds(source: Path, quant: str) -> list[str]:
    """Formats of all tensors, in the order of the source."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = FILE_TYPES[quant].number, 1
    target = source.with_name("quantized.gguf")
    target.unlink(missing_ok=True)
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    assert status == 0, (source, quant)
    file = GgufFile.open(target)
    with GgufFile.open(source) as original:
        return [file.tensors[name].kind for name in original.tensors]


def runs(kinds: list[str]) -> list[list[str | int]]:
    """[a, a, b] -> [[a, 2], [b, 1]]"""
    out: list[list[str | int]] = []
    for kind in kinds:
        if out and out[-1][0] == kind:
            out[-1][1] = int(out[-1][1]) + 1
        else:
            out.append([kind, 1])
    return out


def by_part(config: ModelConfig, kinds: list[str]) -> dict[str, list[list[str | int]]]:
    """Formats by the last component of our names, over the layers."""
    parts: dict[str, list[str]] = {}
    for (name, _), kind in zip(shapes(config), kinds, strict=True):
        parts.setdefault(name.rsplit(".", 1)[-1], []).append(kind)
    return {part: runs(found) for part, found in parts.items()}


def main() -> None:
    models = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.gguf"
        for shape in SHAPES:
            config = config_of(shape)
            write_checkpoint(synthetic_checkpoint(config, "f32"), source)
            found = {quant: quantized_kinds(source, quant) for quant in FILE_TYPES}
            models[shape] = {"shape": SHAPES[shape]} | {q: by_part(config, k) for q, k in found.items()}
    golden = {
        "made by": f"llama-cpp-python {llama_cpp.__version__}, make_llama_cpp_kinds.py",
        "models": models,
    }
    Path(__file__).with_name("llama_cpp_kinds.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
