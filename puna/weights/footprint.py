"""About how many bytes the weights of a configuration take in a format, without a file.

GGUF types count the text decoder only, as their files do: an image encoder has a file of its own.
"""

from __future__ import annotations

from math import prod

from puna.core import BadValue, closest
from puna.model.config import ModelConfig
from puna.model.incoming import is_llama4
from puna.model.names import shapes
from puna.weights.blocks.formats import FORMATS
from puna.weights.quantize.mixes import FILE_TYPES, tensor_kind

FORMATS_SHOWN = ("bf16", "fp8", "int4", "q8_0", "q4_k_m")


def weight_bytes(cfg: ModelConfig, form: str) -> int:
    """Bytes of all tensors in `form`: bf16, fp8, int4 or a GGUF file type. Raises BadValue for another.

    bf16: two bytes each. fp8: as Meta publishes it, in feed-forward matrices (of Llama 4: routed experts) of
    all layers but the first and the last, with a 32-bit scale for every row. int4: as in Meta's recipes; see
    `_int4`.
    """
    if form == "bf16":
        return sum(2 * prod(shape) for _, shape in shapes(cfg))
    if form == "fp8":
        return sum(_fp8(cfg, name, shape) for name, shape in shapes(cfg))
    if form == "int4":
        return sum(_int4(cfg, name, shape) for name, shape in shapes(cfg))
    if form not in FILE_TYPES:
        known = ("bf16", "fp8", "int4", *FILE_TYPES)
        raise BadValue(f"unknown format {form!r}{closest(form, known)}; known: {', '.join(known)}")
    text = [(name, shape) for name, shape in shapes(cfg) if not name.startswith("vision")]
    return sum(_gguf(tensor_kind(cfg, form, name, shape), shape) for name, shape in text)


def _gguf(kind: str, shape: tuple[int, ...]) -> int:
    form = FORMATS[kind]
    return prod(shape) // form.block_len * form.block_bytes


def _fp8(cfg: ModelConfig, name: str, shape: tuple[int, ...]) -> int:
    chosen = (".experts_",) if cfg.experts else (".w1", ".w2", ".w3")
    if not _inner(cfg, name) or not any(part in name for part in chosen):
        return 2 * prod(shape)
    return prod(shape) + 4 * prod(shape[:-1])


def _int4(cfg: ModelConfig, name: str, shape: tuple[int, ...]) -> int:
    """Llama 4: experts, shared ones too, of all layers but the first and last, with a scale for every row.

    Others, as Llama 3.2's releases: matrices of all layers with a 32-bit scale for every 32 numbers, and the
    table and the output in 8 bits, each on its own even where they are tied.
    """
    n = prod(shape)
    if is_llama4(cfg):
        parts = (".experts_", ".shared_") if cfg.experts else (".w1", ".w2", ".w3")
        chosen = _inner(cfg, name) and any(part in name for part in parts)
        return n // 2 + 4 * prod(shape[:-1]) if chosen else 2 * n
    if name in ("tok_embeddings", "output"):
        return (n + 4 * shape[0]) * (2 if cfg.tied else 1)
    is_matrix = len(shape) == 2 and not name.startswith("vision")
    return n // 2 + n // 8 if is_matrix else 2 * n


def _inner(cfg: ModelConfig, name: str) -> bool:
    """Whether a tensor is of a layer that is neither the first nor the last."""
    first, _, rest = name.partition(".")
    return first == "layers" and 0 < int(rest.partition(".")[0]) < cfg.n_layers - 1
