"""A Llama 4 file: shown in full, and run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from llm.tiny_llm import write_tiny_llm

from puna.cli.main import main
from puna.model.config import ExpertsConfig, ModelConfig, QueryTemperature
from puna.model.names import shapes, to_gguf
from puna.model.sizes import n_active, n_parameters
from puna.weights.blocks.tensor import RawTensor
from puna.weights.files.gguf import write_gguf
from puna.weights.files.values import Value, ValueType
from puna.weights.load import open_checkpoint

CONFIG = ModelConfig(
    64, 4, 4, 2, 16, 96, 32, 1e-5, 5e5, 1024, tied=False, experts=ExpertsConfig(4, 1, 32, 32, every=2),
    attention_chunk=8192, no_rope_every=4, qk_norm=True, query_temperature=QueryTemperature(),
)  # fmt: skip
NUMBERS = {
    "block_count": 4, "embedding_length": 64, "feed_forward_length": 96, "expert_feed_forward_length": 32,
    "interleave_moe_layer_step": 2, "expert_count": 4, "expert_used_count": 1, "attention.head_count": 4,
    "attention.head_count_kv": 2, "context_length": 1024, "rope.dimension_count": 16, "vocab_size": 32,
}  # fmt: skip


@pytest.fixture
def scout(tmp_path: Path) -> Path:
    """The tensors and keys that llama.cpp's converter writes for architecture llama4."""
    metadata = {
        "general.architecture": Value.of(ValueType.STRING, "llama4"),
        "llama4.rope.freq_base": Value.of(ValueType.FLOAT32, 5e5),
        "llama4.attention.layer_norm_rms_epsilon": Value.of(ValueType.FLOAT32, 1e-5),
        "tokenizer.ggml.model": Value.of(ValueType.STRING, "no_vocab"),
    } | {f"llama4.{key}": Value.of(ValueType.UINT32, number) for key, number in NUMBERS.items()}
    tensors = []
    for ours, shape in shapes(CONFIG):
        data = np.zeros(shape, np.float32).view(np.uint8)
        tensors.append(RawTensor(to_gguf(ours), "F32", shape, lambda data=data: data))
    path = tmp_path / "scout.gguf"
    write_gguf(path, metadata, tensors)
    return path


def test_its_configuration_and_tensors_are_read(scout: Path) -> None:
    with open_checkpoint(scout) as checkpoint:
        config = checkpoint.config
        assert config.norm_eps == pytest.approx(1e-5)
        assert (config.experts, config.no_rope_every, config.qk_norm) == (CONFIG.experts, 4, True)
        assert checkpoint.tensors["layers.1.experts_w2"].shape == (4, 64, 32)


def test_it_is_shown(scout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(scout), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["parameters"] == n_parameters(CONFIG)
    assert shown["active_parameters"] == n_active(CONFIG) < n_parameters(CONFIG)
    assert main(["show", str(scout)]) == 0
    assert "1 of 4 in every 2. layer" in capsys.readouterr().out


def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = ("experts", "attention_chunk", "no_rope_every", "qk_norm", "query_temperature")
    changes = {part: getattr(CONFIG, part) for part in parts} | {"n_layers": 4}
    path = write_tiny_llm(tmp_path / "scout.gguf", **changes)
    ask = ["run", str(path), "hello", "--max-tokens", "8", "--temperature", "0"]
    assert main(ask) == 0
    answer = capsys.readouterr().out
    assert answer
    assert main([*ask, "--threads", "1"]) == 0
    assert capsys.readouterr().out == answer


def test_the_catalog_shows_one_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "llama-4-scout-instruct"]) == 0
    out = capsys.readouterr().out
    for part in ("108,641,793,536", "17,172,894,720 active", "10,485,760", "llama3, factor 16", "69.8 GB"):
        assert part in out
    assert main(["show", "llama-4-behemoth"]) == 0
    assert "never released" in capsys.readouterr().out
    assert main(["show", "llama-4-behemoth", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_experts"] == 16
