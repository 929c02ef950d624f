"""The folder for other engines, read back by hand after the safetensors format's own description."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from puna.bench.hf_folder import write_hf_folder
from puna.model import catalog
from puna.model.config import ModelConfig, from_hf
from puna.model.names import from_hf as our_name
from puna.model.names import unpermute
from puna.weights.blocks.quant import dequantize, quantize
from puna.weights.synthetic import synthetic_checkpoint

SHAPE = ModelConfig(64, 2, 4, 2, 32, 96, 256, 1e-5, 1e4, context_length=128, tied=False)
LLAMA32 = catalog.find("llama-3.2-1b").config.rope_scaling


@pytest.mark.parametrize("config", [SHAPE, replace(SHAPE, tied=True, rope_scaling=LLAMA32)])
def test_round_trip(config: ModelConfig, tmp_path: Path) -> None:
    checkpoint = synthetic_checkpoint(config, "q4_0")
    write_hf_folder(checkpoint, tmp_path)
    assert from_hf(json.loads((tmp_path / "config.json").read_text())) == config
    data = (tmp_path / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    del header["__metadata__"]
    assert {our_name(name) for name in header} == set(checkpoint.tensors) - {"rope_factors"}
    for name, entry in header.items():
        tensor = checkpoint.tensors[str(our_name(name))]
        found = np.frombuffer(body[slice(*entry["data_offsets"])], np.uint8)
        assert entry["dtype"] == "BF16"
        rows = dequantize(found, "BF16", tuple(entry["shape"]))
        if tensor.name.endswith((".wq", ".wk")):
            rows = unpermute(rows, rows.shape[0] // config.head_dim)
        original = quantize(dequantize(tensor.data(), tensor.kind, tensor.shape), "BF16")
        np.testing.assert_array_equal(rows, dequantize(original, "BF16", tensor.shape))
