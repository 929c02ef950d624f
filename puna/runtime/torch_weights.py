"""From tensors of a checkpoint to weights on a torch device, in the type that was asked for.

  bf16, f16, f32   plain tensors; block formats are decoded. Where nobody asks for a type, matrices of
                   releases that others quantized (formats.CODED) keep their numbers, and their few bits
  fp8              matrices as e4m3 with a scale for every row, a byte a weight; e4m3 of a release is kept
  int4             block formats keep their numbers, four bits where the file has four or fewer and eight
  where it
                   has more; floats are rounded, as GGUF's Q4_1 (the output head, embeddings and routers:
                   Q8_0)

Norms are float32 always. Where rows are not whole blocks a matrix stays in floats.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch

from puna.core import BadValue, closest
from puna.ops.torch_weights import FP8, CodedWeight, Fp8Weight, pack
from puna.weights.blocks.codes import Codes, code_bits, has_codes, split_codes
from puna.weights.blocks.formats import CODED, FORMATS
from puna.weights.blocks.quant import dequantize, quantize
from puna.weights.blocks.tensor import RawTensor

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
WEIGHTS = (*DTYPES, "fp8", "int4")
_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ACCURATE = ("tok_embeddings", "output", "router")  # small, or what answers depend on most
_TEXT = ("layers", "cross_attention_layers", "tok_embeddings", "output")  # image encoders stay in floats
_BLOCK = 32  # values of a row that rounding shares a scale among
_BLOCKS_PACKED = 8  # of a group, at most: torch's 4-bit products know groups of 256
_FEW_BITS = 0.6  # bytes a weight: formats up to here have no more than four bits


@dataclass(frozen=True, slots=True)
class WeightType:
    """`kind` of matrices, and the dtype of floats and of activations."""

    kind: str  # of WEIGHTS
    dtype: torch.dtype
    is_default: bool = False  # nobody has asked for it

    @classmethod
    def of(cls, name: str, default: str, activations: str = "") -> WeightType:
        """For a name of WEIGHTS, or "" for `default`. Raises BadValue.

        Beside fp8 and int4 `activations` are bfloat16 unless somebody says: fast products exist for it alone.
        """
        is_default = not name
        name = name or default
        if name not in WEIGHTS:
            hint = closest(name, WEIGHTS)
            raise BadValue(
                f"weights of the torch backend must be one of {', '.join(WEIGHTS)}, got {name!r}{hint}"
            )
        return cls(name, DTYPES.get(name, DTYPES[activations or "bf16"]), is_default)


def check_device(wanted: WeightType, device: torch.device) -> None:
    """Raise BadValue for a kind of weight that the device cannot hold or turn into floats."""
    dtype = {"fp8": torch.float8_e4m3fn, "int4": torch.uint8}.get(wanted.kind, wanted.dtype)
    try:
        torch.zeros(1, dtype=dtype).to(device).to(wanted.dtype)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadValue(
            f"weights {wanted.kind} cannot be kept on {device} (torch says: {first}); use another type, "
            "for example f16"
        ) from None


def load_weight(tensor: RawTensor, wanted: WeightType, device: torch.device) -> Any:
    """A tensor, or a kind of weight, on `device`; a copy, so that the file may be closed."""
    if len(tensor.shape) < 2:
        return _floats(tensor, torch.float32).to(device)
    if not _is_matrix(tensor.name) or (wanted.kind in DTYPES and not _is_kept(tensor, wanted.is_default)):
        return _floats(tensor, wanted.dtype).to(device)
    if tensor.kind == "FP8":
        return _fp8(tensor).to(device)
    if wanted.kind == "fp8" and not tensor.name.endswith("router"):
        return Fp8Weight.of(_floats(tensor, torch.float32)).to(device)
    if tensor.shape[-1] % _BLOCK == 0:
        coded = _coded(tensor).to(device)
        # a table of embeddings is looked up too, which the packed order does not allow
        return coded if tensor.name.endswith("tok_embeddings") else pack(coded, wanted.dtype)
    return _floats(tensor, wanted.dtype).to(device)


def weight_bytes(tensor: RawTensor, kind: str, is_default: bool = False) -> int:
    """Bytes that `load_weight` takes for it, at most."""
    count = prod(tensor.shape)
    if len(tensor.shape) < 2:
        return 4 * count
    if not _is_matrix(tensor.name) or (kind in DTYPES and not _is_kept(tensor, is_default)):
        return count * DTYPES.get(kind, torch.float32).itemsize
    if kind == "fp8" and tensor.kind != "FP8":
        return count + 4 * (count // max(tensor.shape[-1], 1))
    stored = tensor.kind if has_codes(tensor.kind) or tensor.kind == "FP8" else _rounded_kind(tensor)
    if stored == "INT8_16":
        return int(count * 1.25)
    return int(count * (1.15 if code_bits(stored) == 8 else 0.75))


def _is_matrix(name: str) -> bool:
    """Whether it may be quantized: no image encoder, and no adapter, which is small."""
    return name.partition(".")[0] in _TEXT and not name.endswith(("_down", "_up"))


def _is_kept(tensor: RawTensor, is_default: bool) -> bool:
    return is_default and tensor.kind in CODED


def _floats(tensor: RawTensor, dtype: torch.dtype) -> torch.Tensor:
    if tensor.kind in _STORED:
        raw = torch.from_numpy(np.array(tensor.data()).reshape(-1))
        return raw.view(_STORED[tensor.kind]).reshape(tensor.shape).to(dtype)
    return torch.from_numpy(dequantize(tensor.data(), tensor.kind, tensor.shape)).to(dtype)


def _fp8(tensor: RawTensor) -> Fp8Weight:
    """The numbers of a release, with a scale for a row where all its blocks have the same."""
    blocks = np.array(tensor.data()).view(FORMATS["FP8"].layout).reshape(*tensor.shape[:-1], -1)
    values = torch.from_numpy(np.ascontiguousarray(blocks["qs"]).reshape(tensor.shape)).view(FP8)
    scale_EG = torch.from_numpy(np.ascontiguousarray(blocks["d"]))
    return Fp8Weight(values, *_joined([scale_EG], scale_EG.shape[-1]))


def _joined(parts: list[torch.Tensor], most: int) -> list[torch.Tensor]:
    """Scales [..., E, G], and minimums, of groups twice as large as long as neighbours have the same: up to
    `most` of our blocks.
    """
    n_blocks = parts[0].shape[-1]
    while all(part.shape[-1] % 2 == 0 and 2 * n_blocks <= most * part.shape[-1] for part in parts):
        if not all(torch.equal(part[..., ::2], part[..., 1::2]) for part in parts):
            return parts
        parts = [part[..., ::2].contiguous() for part in parts]
    if most >= n_blocks and all(bool((part == part[..., :1]).all()) for part in parts):
        return [part[..., :1].contiguous() for part in parts]
    return parts


def _coded(tensor: RawTensor) -> CodedWeight:
    if not has_codes(tensor.kind):
        kind = _rounded_kind(tensor)
        values = _floats(tensor, torch.float32).numpy()
        tensor = replace(tensor, kind=kind, data=partial(quantize, values, kind))
    return _weight(split_codes(tensor.data(), tensor.kind), tensor.shape)


def _rounded_kind(tensor: RawTensor) -> str:
    """What floats, and block formats without whole numbers of their own, are rounded to."""
    if tensor.kind in _STORED:
        return "Q8_0" if tensor.name.rpartition(".")[2] in _ACCURATE else "Q4_1"
    fmt = FORMATS[tensor.kind]
    return "Q8_0" if fmt.block_bytes / fmt.block_len > _FEW_BITS else "Q4_1"


def _weight(codes: Codes, shape: tuple[int, ...]) -> CodedWeight:
    """Blocks of rows side by side again."""

    def rows(array: Any, width: int) -> Any:
        return None if array is None else torch.from_numpy(array.reshape(*shape[:-1], -1, width))

    values = codes.codes_BL.reshape(*shape)
    if codes.bits == 4:
        values = values[..., ::2] | (values[..., 1::2] << np.uint8(4))
    outer = rows(codes.outer_B2, 2)
    scale, minimum = (rows(array, 1) for array in (codes.scale_BG, codes.minimum_BG))
    scale, minimum = scale.squeeze(-1), None if minimum is None else minimum.squeeze(-1)
    if scale.dtype == torch.float32:  # of a release, whose groups may be larger than our blocks
        parts = [scale] if minimum is None else [scale, minimum]
        scale, *rest = _joined(parts, _BLOCKS_PACKED if codes.bits == 4 else scale.shape[-1])
        minimum = rest[0] if rest else None
    return CodedWeight(torch.from_numpy(np.ascontiguousarray(values)), scale, minimum, outer, codes.zero)
