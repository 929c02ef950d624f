"""Block formats and written files against llama.cpp itself."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from puna.model.config import ModelConfig
from puna.weights.blocks.formats import GGUF_FORMATS
from puna.weights.blocks.quant import dequantize, quantize, random_blocks
from puna.weights.load import write_checkpoint
from puna.weights.quantize.mixes import FILE_TYPES
from puna.weights.synthetic import synthetic_checkpoint

pytestmark = pytest.mark.peers

N_VALUES = 1 << 14


@pytest.fixture(scope="module")
def llama_cpp() -> ModuleType:
    module: ModuleType = pytest.importorskip("llama_cpp")
    return module


@pytest.fixture(scope="module")
def ggml(llama_cpp: ModuleType) -> ctypes.CDLL:
    assert llama_cpp.__file__ is not None
    return ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))


def call(function: Any, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    function(
        source.ctypes.data_as(ctypes.c_void_p),
        target.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(N_VALUES),
    )
    return target


@pytest.mark.parametrize("kind", [kind for kind in GGUF_FORMATS if kind != "F32"])
def test_dequantize_equals_ggml(kind: str, ggml: ctypes.CDLL) -> None:
    floats = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}
    name = floats.get(kind, "dequantize_row_" + kind.lower().replace("_k", "_K"))
    data = random_blocks(kind, (N_VALUES,), np.random.default_rng(1))
    theirs = call(getattr(ggml, name), data, np.zeros(N_VALUES, np.float32))
    np.testing.assert_array_equal(dequantize(data, kind, (N_VALUES,)), theirs)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantize_equals_ggml(kind: str, ggml: ctypes.CDLL) -> None:
    values = np.random.default_rng(2).standard_normal(N_VALUES, dtype=np.float32)
    ours = quantize(values, kind)
    theirs = call(getattr(ggml, f"quantize_row_{kind.lower()}_ref"), values, np.zeros_like(ours))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("quant", FILE_TYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_llama_cpp_runs_synthetic_models(
    quant: str, tied: bool, llama_cpp: ModuleType, tmp_path: Path
) -> None:
    config = ModelConfig(
        dim=512,
        n_layers=2,
        n_heads=8,
        n_kv_heads=2,
        head_dim=64,
        ffn_dim=768,
        vocab_size=512,
        norm_eps=1e-5,
        rope_theta=10000.0,
        context_length=512,
        tied=tied,
    )
    config = replace(config, dim=96 * 6, n_heads=9, n_kv_heads=3) if tied else config
    write_checkpoint(synthetic_checkpoint(config, quant), tmp_path / "m.gguf")
    model = llama_cpp.Llama(
        str(tmp_path / "m.gguf"), n_ctx=64, n_batch=64, n_threads=1, logits_all=True, verbose=False
    )
    model.eval(list(range(1, 9)))
    logits = np.array(model.scores[:8])
    model.close()
    assert logits.shape == (8, config.vocab_size)
    assert np.isfinite(logits).all()
    assert logits.std() > 0.1
