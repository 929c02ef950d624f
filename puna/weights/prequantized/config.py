"""What config.json's quantization_config says of a release, checked.

Read are compressed-tensors (8-bit floats, integers of 4 and 8 bits), fbgemm_fp8 (Meta's Llama 3.1 405B), fp8,
AWQ, GPTQ and bitsandbytes in 4 bits. What its tensors are, matrices.py knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from puna.core import BadFile, Unsupported, closest

_METHODS = ("compressed-tensors", "fbgemm_fp8", "fp8", "awq", "gptq", "bitsandbytes")
_FORMATS = (
    "pack-quantized", "float-quantized", "int-quantized", "naive-quantized", "mixed-precision", "dense",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quantization:
    """What quantization_config says, checked."""

    method: str  # one of _METHODS
    bits: int = 0  # AWQ and GPTQ; 0: the tensors tell
    group_size: int = 0  # AWQ and GPTQ; 0: all inputs are one group
    symmetric: bool = False  # GPTQ: all zeros are the middle
    zero_offset: int = 0  # GPTQ: added to the zeros as stored
    block: tuple[int, int] | None = None  # fp8: outputs and inputs that share a scale

    def __str__(self) -> str:
        bits = f", {self.bits} bits" if self.bits else ""
        group = f", groups of {self.group_size}" if self.group_size else ""
        return f"{self.method}{bits}{group}"


def read_quantization(config: Mapping[str, Any]) -> Quantization | None:
    """What a config.json says of it; None where its weights are not quantized.

    Raises Unsupported for a method, format or width that Puna does not read, BadFile for what is malformed.
    """
    found = config.get("quantization_config") or config.get("compression_config")
    if found is None:
        return None
    if not isinstance(found, dict):
        raise BadFile(f"quantization_config of config.json must be an object, found {found!r:.40}")
    method = found.get("quant_method")
    if not isinstance(method, str) or method not in _METHODS:
        hint = closest(method, _METHODS) if isinstance(method, str) else ""
        raise Unsupported(
            f"config.json says that the weights are quantized by {method!r:.40}{hint}, and Puna reads "
            f"{', '.join(_METHODS)}; use another release, or a GGUF file of the model"
        )
    return _READERS[method](found)


def _read_compressed(found: Mapping[str, Any]) -> Quantization:
    _one_of(found, "format", _FORMATS, "pack-quantized")
    sparse = found.get("sparsity_config")
    if isinstance(sparse, dict) and sparse.get("format", "dense") != "dense":
        _one_of(sparse, "format", ("dense",), "dense")
    groups = found.get("config_groups")
    if not isinstance(groups, dict):
        raise BadFile(f"quantization_config.config_groups must be an object, found {groups!r:.40}")
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, dict) else None
        if weights is None:  # activations only
            continue
        if not isinstance(weights, dict):
            raise BadFile(f"weights of config group {name!r:.40} must be an object, found {weights!r:.40}")
        _one_of(weights, "type", ("int", "float"), "int")
        _one_of(weights, "num_bits", (4, 8) if weights.get("type", "int") == "int" else (8,), 8)
    return Quantization("compressed-tensors")


def _read_fbgemm(found: Mapping[str, Any]) -> Quantization:
    return Quantization("fbgemm_fp8")


def _read_bitsandbytes(found: Mapping[str, Any]) -> Quantization:
    _one_of(found, "load_in_4bit", (True,), False)
    _one_of(found, "bnb_4bit_quant_type", ("nf4", "fp4"), "fp4")
    return Quantization("bitsandbytes", bits=4)


def _read_fp8(found: Mapping[str, Any]) -> Quantization:
    block = found.get("weight_block_size")
    if block is None:
        return Quantization("fp8")
    if not isinstance(block, list) or len(block) != 2 or not all(_is_count(n) for n in block):
        raise BadFile(f"weight_block_size of quantization_config must be two counts, found {block!r:.40}")
    return Quantization("fp8", block=(block[0], block[1]))


def _read_awq(found: Mapping[str, Any]) -> Quantization:
    bits = _one_of(found, "bits", (4,), 4)
    _one_of(found, "version", ("gemm", "GEMM"), "gemm")
    _one_of(found, "zero_point", (True,), True)
    return Quantization("awq", bits, _group_size(found))


def _read_gptq(found: Mapping[str, Any]) -> Quantization:
    """In the first version of the format zeros are stored less one, and wrap around."""
    bits = _one_of(found, "bits", (2, 4, 8), None)
    version = _one_of(found, "checkpoint_format", ("gptq", "gptq_v2"), "gptq")
    symmetric = _one_of(found, "sym", (True, False), False)
    return Quantization("gptq", bits, _group_size(found), symmetric, int(version == "gptq"))


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Quantization]] = {
    "compressed-tensors": _read_compressed, "fbgemm_fp8": _read_fbgemm, "fp8": _read_fp8, "awq": _read_awq,
    "gptq": _read_gptq, "bitsandbytes": _read_bitsandbytes,
}  # fmt: skip


def _one_of(found: Mapping[str, Any], key: str, known: tuple[Any, ...], default: Any) -> Any:
    value = found.get(key, default)
    if not any(type(value) is type(one) and value == one for one in known):
        names = ", ".join(map(str, known))
        raise Unsupported(
            f"{key} of quantization_config is {value!r:.40}, and Puna reads {names}; use another release, or "
            "a GGUF file of the model"
        )
    return value


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def _group_size(found: Mapping[str, Any]) -> int:
    size = found.get("group_size", found.get("q_group_size", 128))
    if size in (-1, None):
        return 0
    if not _is_count(size):
        raise BadFile(f"group_size of quantization_config must be a count or -1, found {size!r:.40}")
    return int(size)
