"""Kinds of weight that torch_ops multiplies beside plain tensors: floats of 8 bits, and whole numbers of 4 or
8.

All offer `linear(x)`, `rows(ids)` for embedding, `[e]` for one expert of a stack, and the bytes they take.
Where the device has a matrix product for the kind it is used, once it has proved itself on a small matrix
(`is_right`); otherwise each matrix is turned into floats when it is multiplied, and forgotten.

Shapes: T tokens, E outputs, D inputs, G groups of a row that share a scale, B blocks of a row that share an
outer one, N codes of a group.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

FP8 = torch.float8_e4m3fn
_FP8_MAX = 448.0
_AT_ONCE, _AT_ONCE_CPU = 1 << 26, 1 << 20  # values that are floats at a time; on a CPU what its caches hold
_PACKED_GROUPS = (32, 64, 128, 256)  # that torch's 4-bit products know


class LinearWeight:
    """What a kind of weight has to offer; its fields are tensors, or None."""

    __slots__ = ()

    def floats(self, dtype: torch.dtype) -> Tensor:
        """All values -> [..., E, D]."""
        raise NotImplementedError

    def linear(self, x_TD: Tensor) -> Tensor:
        """x @ w.T -> [T, E]; a large matrix is never floats as a whole."""
        n_out, n_in = self.shape[-2:]
        most = _AT_ONCE_CPU if x_TD.device.type == "cpu" else _AT_ONCE
        n_rows = max(1, most // n_in)
        if n_out <= n_rows:
            return F.linear(x_TD, self.floats(x_TD.dtype))
        starts = range(0, n_out, n_rows)
        return torch.cat([F.linear(x_TD, self[at : at + n_rows].floats(x_TD.dtype)) for at in starts], dim=-1)

    @property
    def shape(self) -> tuple[int, ...]:
        """[..., E, D]."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, ids_T: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of a table -> [T, D]."""
        return self[ids_T].floats(dtype)

    def __getitem__(self, at: Any) -> Self:
        """Part of the first axis: an expert, or rows. Every field has that axis."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        chosen = {name: _take(part, at) for name, part in parts.items() if isinstance(part, Tensor)}
        return replace(self, **chosen)  # type: ignore[type-var]

    def to(self, device: torch.device) -> Self:
        parts = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        moved = {name: part.to(device) for name, part in parts.items() if isinstance(part, Tensor)}
        return replace(self, **moved)  # type: ignore[type-var]

    @property
    def n_bytes(self) -> int:
        parts = (getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        return sum(part.nbytes for part in parts if isinstance(part, Tensor))


def linear(x_TD: Tensor, w_ED: Tensor | LinearWeight) -> Tensor:
    """x @ w.T for any kind of weight -> [T, E]."""
    return F.linear(x_TD, w_ED.to(x_TD.dtype)) if isinstance(w_ED, Tensor) else w_ED.linear(x_TD)


def lookup(w_VD: Tensor | LinearWeight, ids_T: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of a table of any kind -> [T, D]."""
    if isinstance(w_VD, Tensor):
        return F.embedding(ids_T, w_VD).to(dtype)
    return w_VD.rows(ids_T, dtype)


def _take(part: Tensor, at: Any) -> Tensor:
    """torch has no indexing of 8-bit floats on every device; their bytes will do."""
    if part.dtype == FP8:
        return part.view(torch.uint8)[at].view(FP8)
    return part[at]


@dataclass(frozen=True, slots=True, eq=False)
class Fp8Weight(LinearWeight):
    """e4m3 (Micikevicius et al. 2022) with a scale for every row, or for groups of its columns.

    Our own scales (`of`) are powers of two, so that no product with them rounds in any type of activation.
    """

    values_ED: Tensor
    scale_EG: Tensor  # float32; G is 1 where a row has one

    @classmethod
    def of(cls, w_ED: Tensor) -> Fp8Weight:
        """The nearest one to floats [..., E, D]."""
        largest_E1 = w_ED.float().abs().amax(-1, keepdim=True)
        exponent_E1 = torch.ceil(torch.log2(largest_E1.clamp_min(2.0**-100) / _FP8_MAX))
        scale_E1 = torch.exp2(exponent_E1)
        return cls((w_ED.float() / scale_E1).clamp(-_FP8_MAX, _FP8_MAX).to(FP8), scale_E1)

    def floats(self, dtype: torch.dtype) -> Tensor:
        values_EGN = self.values_ED.float().reshape(*self.scale_EG.shape, -1)
        return (values_EGN * self.scale_EG[..., None]).reshape(self.shape).to(dtype)

    def linear(self, x_TD: Tensor) -> Tensor:
        fits = all(n % 16 == 0 for n in self.shape) and self.scale_EG.shape[-1] == 1
        if x_TD.device.type == "cuda" and fits and fp8_is_right(x_TD.device, x_TD.dtype):
            return self._multiply_fp8(x_TD)
        return LinearWeight.linear(self, x_TD)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values_ED.shape)

    def _multiply_fp8(self, x_TD: Tensor) -> Tensor:
        """Both sides in 8 bits; activations get a scale for every token."""
        largest_T1 = x_TD.float().abs().amax(-1, keepdim=True)
        scale_T1 = largest_T1.clamp_min(1e-12) / _FP8_MAX
        y_TE: Tensor = torch._scaled_mm(
            (x_TD.float() / scale_T1).to(FP8),
            self.values_ED.t(),
            scale_a=scale_T1,
            scale_b=self.scale_EG.t(),
            out_dtype=x_TD.dtype,
        )
        return y_TE


@dataclass(frozen=True, slots=True, eq=False)
class CodedWeight(LinearWeight):
    """Whole numbers with scales: the very numbers of a block format, GGUF's or one of formats.CODED.

    value = scale * (code - zero) + minimum, in float32, with a scale and a minimum for every group; where
    there is `outer_EB2`, both are whole numbers times its two columns.
    """

    codes: Tensor  # int8 [..., E, D], or uint8 [..., E, D/2]: the lower half of a byte is the even column
    scale_EG: Tensor  # float16 or float32; int8 or uint8 where there are outer ones
    minimum_EG: Tensor | None
    outer_EB2: Tensor | None  # float16
    zero: int

    @property
    def is_packed(self) -> bool:
        return self.codes.dtype == torch.uint8

    @property
    def shape(self) -> tuple[int, ...]:
        return *self.codes.shape[:-1], self.codes.shape[-1] * (2 if self.is_packed else 1)

    def unpacked(self) -> Tensor:
        """The codes, one in a byte -> [..., E, D]."""
        if not self.is_packed:
            return self.codes
        return torch.stack((self.codes & 15, self.codes >> 4), dim=-1).flatten(-2)

    def scales(self) -> tuple[Tensor, Tensor | None]:
        """Scales and minimums -> float32 [..., E, G]."""
        scale, minimum = self.scale_EG.float(), self.minimum_EG
        minimum = minimum.float() if minimum is not None else None
        if self.outer_EB2 is None:
            return scale, minimum
        per_block = scale.shape[-1] // self.outer_EB2.shape[-2]
        outer = self.outer_EB2.float().repeat_interleave(per_block, dim=-2)
        return scale * outer[..., 0], None if minimum is None else minimum * outer[..., 1]

    def floats(self, dtype: torch.dtype) -> Tensor:
        scale, minimum = self.scales()
        values = self.unpacked().float().reshape(*scale.shape, -1)
        values = (values - self.zero if self.zero else values) * scale[..., None]
        if minimum is not None:
            values += minimum[..., None]
        return values.reshape(self.shape).to(dtype)


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight(LinearWeight):
    """Four bits in the order of torch's own product (tinygemm's on CUDA): value = scale * (code - 8) + zero.

    Scales and zeros have the type of the activations, so with bfloat16 they are rounded to it.
    """

    packed: Tensor
    scales_GE2: Tensor
    group: int

    def linear(self, x_TD: Tensor) -> Tensor:
        multiply = (
            torch.ops.aten._weight_int4pack_mm
            if x_TD.device.type == "cuda"
            else torch.ops.aten._weight_int4pack_mm_for_cpu
        )
        y_TE: Tensor = multiply(x_TD.contiguous(), self.packed, self.group, self.scales_GE2)
        return y_TE


def pack(weight: CodedWeight, dtype: torch.dtype) -> CodedWeight | PackedWeight:
    """`weight` for torch's own 4-bit product, where the device has a right one for its shape; else itself."""
    if not weight.is_packed or len(weight.shape) != 2:
        return weight
    n_out, n_in = weight.shape
    group = n_in // weight.scale_EG.shape[-1]
    per_tile = 128 if weight.codes.device.type == "cuda" else 2
    fits = group in _PACKED_GROUPS and n_out % 16 == 0 and n_in % per_tile == 0
    if not fits or not int4_is_right(weight.codes.device, dtype, group):
        return weight
    return _pack(weight, dtype, group)


def _pack(weight: CodedWeight, dtype: torch.dtype, group: int) -> PackedWeight:
    scale_EG, minimum_EG = weight.scales()
    zero_EG = scale_EG * (8 - weight.zero) + (0 if minimum_EG is None else minimum_EG)
    scales_GE2 = torch.stack((scale_EG, zero_EG), dim=-1).transpose(0, 1).to(dtype).contiguous()
    codes = weight.unpacked()
    if codes.device.type == "cuda":
        halves = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8).contiguous()
        return PackedWeight(torch.ops.aten._convert_weight_to_int4pack(halves, 8), scales_GE2, group)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 8)
    return PackedWeight(packed, scales_GE2, group)


@cache
def int4_is_right(device: torch.device, dtype: torch.dtype, group: int) -> bool:
    """Whether torch has a fast 4-bit product here, and it gives what the codes say."""
    if device.type not in ("cpu", "cuda") or dtype != torch.bfloat16:
        return False  # in float32 a CPU has one too, which takes longer than to make floats of the codes
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (64, 128), dtype=torch.uint8, generator=random)
    scale = torch.randint(1, 9, (64, 256 // group), generator=random).half() / 8  # exact in any type
    weight = CodedWeight(codes, scale, scale * -4, None, 0).to(device)
    x = torch.randint(-4, 5, (3, 256), generator=random).to(device, dtype)
    try:
        got = _pack(weight, dtype, group).linear(x)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return _is_near(got, F.linear(x.float(), weight.floats(torch.float32)))


@cache
def fp8_is_right(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's 8-bit product exists on this device and gives what the values say."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return False
    random = torch.Generator().manual_seed(0)
    weight = Fp8Weight.of(torch.randint(-8, 9, (64, 128), generator=random).float()).to(device)
    x = torch.randint(-8, 9, (3, 128), generator=random).to(device, dtype)
    try:
        got = weight._multiply_fp8(x)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return _is_near(got, F.linear(x.float(), weight.floats(torch.float32)), 0.05)


def _is_near(got: Tensor, expected: Tensor, tolerance: float = 0.01) -> bool:
    worst = (got.float() - expected).abs().max()
    return bool(worst <= tolerance * expected.abs().max())
