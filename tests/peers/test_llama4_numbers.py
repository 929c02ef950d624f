"""A file of Llama 4 in Puna and in llama.cpp: metadata, experts and positions mean the same to both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from peers.engines import LlamaCpp, float_oracle, ours

from puna.model.config import ExpertsConfig, ModelConfig, QueryTemperature
from puna.weights.load import write_checkpoint
from puna.weights.synthetic import synthetic_checkpoint

pytestmark = pytest.mark.peers

# llama.cpp tells Scout (16 experts) and Maverick (128, no norm of queries and keys) apart by these
CONFIG = ModelConfig(
    dim=256, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=64, ffn_dim=512, vocab_size=320, norm_eps=1e-5,
    rope_theta=5e5, context_length=1024, tied=False, experts=ExpertsConfig(16, 1, 256, 256, every=2),
    attention_chunk=8192, no_rope_every=4, qk_norm=True, query_temperature=QueryTemperature(),
)  # fmt: skip
IDS = [(7 * i * i + 3 * i) % CONFIG.vocab_size for i in range(100)]


def test_floats_are_llama_cpps(tmp_path: Path, threads: int) -> None:
    pytest.importorskip("llama_cpp")
    path = tmp_path / "f32.gguf"
    write_checkpoint(synthetic_checkpoint(CONFIG, "f32"), path)
    mine, theirs = ours(path, threads=threads, cache_type="f16")(IDS), LlamaCpp(path, threads)(IDS)
    assert np.abs(mine - theirs).max() < 5e-3  # both keep keys and values in F16, and round them elsewhere


def test_quantized_as_close_to_float_as_llama_cpp(tmp_path: Path, threads: int) -> None:
    """Rounded activations change the choice of an expert here and there: so the typical row is compared."""
    pytest.importorskip("llama_cpp")
    path = tmp_path / "q4_k_m.gguf"
    write_checkpoint(synthetic_checkpoint(CONFIG, "q4_k_m"), path)
    true = float_oracle(path)(IDS)
    mine, theirs = (
        float(np.median(np.abs(ask(IDS) - true).max(axis=1)))
        for ask in (ours(path, threads=threads), LlamaCpp(path, threads))
    )
    print(f"median of the worst log-probability of a row: ours {mine:.4f}, llama.cpp {theirs:.4f} off")
    assert mine < 1.2 * theirs
