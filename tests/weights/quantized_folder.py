"""Tiny checkpoints as AutoAWQ, AutoGPTQ and fbgemm leave them, packed after their descriptions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from golden.tiny import Tiny
from safetensors.torch import save_file

from puna.model.names import to_hf

Parts = dict[str, torch.Tensor]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output in each field of a word
GROUP = 32


def pack(values_XN: torch.Tensor, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Unsigned [X, N] -> int32 [X, N * bits / 32], fields from the lowest bits on."""
    per_word = 32 // bits
    fields = values_XN.reshape(len(values_XN), -1, per_word).to(torch.int64)
    if order is not None:
        fields = fields[..., list(order)]
    words = (fields << torch.arange(0, 32, bits)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def random_ints(shape: tuple[int, int], top: int) -> torch.Tensor:
    return torch.randint(0, top, shape)


def half_scales(groups: int, n_out: int) -> torch.Tensor:
    return ((torch.rand(groups, n_out) + 0.5) * 0.02).half()


def awq(shape: tuple[int, int]) -> tuple[Parts, torch.Tensor]:
    """A random matrix [O, I]: its parts, and its values as AutoAWQ dequantizes them, in float16."""
    n_out, n_in = shape
    codes_IO, zeros_GO = random_ints((n_in, n_out), 16), random_ints((n_in // GROUP, n_out), 16)
    scales_GO = half_scales(n_in // GROUP, n_out)
    zeros_IO, scales_IO = zeros_GO.repeat_interleave(GROUP, 0), scales_GO.repeat_interleave(GROUP, 0)
    parts = {
        "qweight": pack(codes_IO, 4, AWQ_ORDER),
        "qzeros": pack(zeros_GO, 4, AWQ_ORDER),
        "scales": scales_GO,
    }
    return parts, ((codes_IO - zeros_IO).half() * scales_IO).T


def gptq(
    shape: tuple[int, int], bits: int = 4, version: int = 1, symmetric: bool = True, shuffled: bool = False
) -> tuple[Parts, torch.Tensor]:
    """As AutoGPTQ has it (version 1: zeros less one) or GPTQModel (version 2)."""
    n_out, n_in = shape
    codes_IO = random_ints((n_in, n_out), 1 << bits)
    zeros_GO = random_ints((n_in // GROUP, n_out), 1 << bits)
    if symmetric:
        zeros_GO = torch.full_like(zeros_GO, 1 << (bits - 1))
    scales_GO = half_scales(n_in // GROUP, n_out)
    g_idx = torch.arange(n_in) // GROUP
    if shuffled:
        g_idx = g_idx[torch.randperm(n_in)]
    parts = {
        "qweight": pack(codes_IO.T.contiguous(), bits).T.contiguous(),
        "qzeros": pack((zeros_GO - int(version == 1)) % (1 << bits), bits),
        "scales": scales_GO,
        "g_idx": g_idx.to(torch.int32),
    }
    return parts, ((codes_IO - zeros_GO[g_idx]).half() * scales_GO[g_idx]).T


def fbgemm(shape: tuple[int, int]) -> tuple[Parts, torch.Tensor]:
    """E4M3 numbers, a float32 scale for every output."""
    weight = torch.randn(shape).mul(100).to(torch.float8_e4m3fn)
    scale = (torch.rand(shape[0], 1) + 0.5) / 2000
    parts = {"weight": weight, "weight_scale": scale, "input_scale_ub": torch.tensor([1200.0])}
    return parts, weight.float() * scale


METHODS: dict[str, tuple[Callable[..., tuple[Parts, torch.Tensor]], dict[str, Any]]] = {
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True}),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}),
    "fbgemm_fp8": (fbgemm, {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}),
}  # fmt: skip


def write_quantized(tiny: Tiny, folder: Path, method: str) -> dict[str, torch.Tensor]:
    """A folder whose matrices in layers are random and quantized -> values by Hugging Face's names."""
    make, config = METHODS[method]
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    stored: Parts = {}
    values: dict[str, torch.Tensor] = {}
    for ours, array in tiny.tensors().items():
        name = to_hf(ours)
        if array.ndim == 2 and ours.startswith("layers."):
            parts, values[name] = make(array.shape)
            stored |= {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in parts.items()}
        else:
            stored[name] = values[name] = torch.from_numpy(array.copy()).half()
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**tiny.hf, "quantization_config": config}))
    return values
