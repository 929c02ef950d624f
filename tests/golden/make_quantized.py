"""Make quantized.npz: matrices that compressed-tensors and bitsandbytes wrote, and what they read them as.

    python tests/golden/make_quantized.py        needs torch, compressed-tensors (0.20), bitsandbytes (0.50)

quantized.npz: for each case the stored parts of a matrix as bytes, `CASE/PART`, and `CASE`, its values as the
library decompresses them, as float32 (a scale's type holds them exactly); `facts` is JSON: for each case the
part of config.json, dtype and shape of the parts, and the type of the values.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bitsandbytes
import compressed_tensors
import numpy as np
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

DTYPES = {
    torch.int32: "I32", torch.int64: "I64", torch.int8: "I8", torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32",
}  # fmt: skip

# name -> (format, type of scales, arguments of the library, shape)
CASES: dict[str, tuple[str, torch.dtype, dict[str, Any], tuple[int, int]]] = {
    "int4 group": ("pack-quantized", torch.bfloat16, {"strategy": "group", "group_size": 32}, (8, 128)),
    "int4 group zero": (
        "pack-quantized",
        torch.float16,
        {"strategy": "group", "group_size": 64, "symmetric": False},
        (12, 128),
    ),
    "int4 channel": ("pack-quantized", torch.float32, {"strategy": "channel"}, (8, 96)),
    "int4 small group": ("pack-quantized", torch.bfloat16, {"strategy": "group", "group_size": 16}, (8, 64)),
    "int8 group": (
        "pack-quantized",
        torch.bfloat16,
        {"num_bits": 8, "strategy": "group", "group_size": 128},
        (4, 128),
    ),
    "int8 group zero": (
        "pack-quantized",
        torch.float16,
        {"num_bits": 8, "strategy": "group", "group_size": 32, "symmetric": False},
        (4, 64),
    ),
    "int8 channel": ("int-quantized", torch.bfloat16, {"num_bits": 8, "strategy": "channel"}, (8, 64)),
    "fp8 tensor": ("float-quantized", torch.float32, {"strategy": "tensor"}, (8, 64)),
    "fp8 channel": ("float-quantized", torch.bfloat16, {"strategy": "channel"}, (8, 64)),
    "fp8 block": (
        "float-quantized",
        torch.float32,
        {"strategy": "block", "block_structure": [128, 128]},
        (130, 160),
    ),
}

# name -> (type of quantization, of values, whether magnitudes are quantized too, shape)
BITSANDBYTES: dict[str, tuple[str, torch.dtype, bool, tuple[int, int]]] = {
    "nf4 nested": ("nf4", torch.bfloat16, True, (130, 128)),  # more than one block of magnitudes
    "nf4": ("nf4", torch.float16, False, (8, 128)),
    "fp4": ("fp4", torch.float32, True, (8, 64)),
}


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {}
    for number, (name, (form, dtype, given, shape)) in enumerate(CASES.items()):
        kind = "float" if form.startswith("float") else "int"
        args = QuantizationArgs(**{"num_bits": 8 if kind == "float" else 4, "type": kind, **given})
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        compressor = BaseCompressor.load_from_registry(form)
        torch.manual_seed(number)
        stored = compressor.compress(parts_of(args, dtype, shape), scheme)
        values = compressor.decompress(dict(stored), scheme)["weight"]
        stored = {part: tensor.contiguous() for part, tensor in stored.items()}
        for part, tensor in stored.items():
            arrays[f"{name}/{part}"] = tensor.reshape(-1).view(torch.uint8).numpy()
        arrays[name] = values.float().numpy()
        config = {"config_groups": {"group_0": json.loads(scheme.model_dump_json())}, "format": form}
        facts[name] = {
            "quantization_config": {"quant_method": "compressed-tensors", **config},
            "parts": {part: [DTYPES[t.dtype], list(t.shape)] for part, t in stored.items()},
            "values": DTYPES[values.dtype],
        }
    for name, (kind, dtype, nested, shape) in BITSANDBYTES.items():
        torch.manual_seed(len(facts))
        weight = torch.randn(shape).mul(0.02).to(dtype)
        codes, state = quantize_4bit(weight, blocksize=64, compress_statistics=nested, quant_type=kind)
        stored = {"weight": codes}
        stored |= {f"weight.{part}": tensor for part, tensor in state.as_dict(packed=True).items()}
        for part, tensor in stored.items():
            arrays[f"{name}/{part}"] = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        arrays[name] = dequantize_4bit(codes, state).float().numpy()
        facts[name] = {
            "quantization_config": {
                "quant_method": "bitsandbytes",
                "load_in_4bit": True,
                "bnb_4bit_quant_type": kind,
            },
            "parts": {part: [DTYPES[t.dtype], list(t.shape)] for part, t in stored.items()},
            "values": DTYPES[dtype],
        }
    versions = {module.__name__: module.__version__ for module in (compressed_tensors, bitsandbytes)}
    facts = {**versions, "cases": facts}
    path = Path(__file__).parent / "quantized.npz"
    np.savez_compressed(path, facts=np.array(json.dumps(facts)), **arrays)
    print(f"{path.stat().st_size:,} bytes")


def parts_of(args: QuantizationArgs, dtype: torch.dtype, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """A random weight with scales, and zeros where there are any, of the strategy's shape."""
    grid = {
        "tensor": (1,),
        "channel": (shape[0], 1),
        "group": (shape[0], shape[1] // (args.group_size or 1)),
        "block": (-(-shape[0] // 128), -(-shape[1] // 128)),
    }[str(args.strategy)]
    largest = 448 if args.type == "float" else 2 ** (args.num_bits - 1)
    parts = {
        "weight": torch.randn(shape).to(dtype),
        "weight_scale": (torch.rand(grid) + 1).div(largest).mul(1.5).to(dtype),
    }
    if not args.symmetric:
        half = 2 ** (args.num_bits - 1)
        parts["weight_zero_point"] = torch.randint(-half, half, grid, dtype=torch.int8)
    return parts


if __name__ == "__main__":
    main()
