"""Llama 4's text decoder on every executor, against transformers: experts, chunks, layers without rope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from runtime.test_native_executor import check_mixes

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from puna.core import Batch, Chunk  # noqa: E402
from puna.model import names  # noqa: E402
from puna.model.config import ExpertsConfig, ModelConfig, QueryTemperature, from_hf  # noqa: E402
from puna.model.incoming import incoming  # noqa: E402
from puna.model.rope import rope_table  # noqa: E402
from puna.runtime.cpu import cpu_info  # noqa: E402
from puna.runtime.native import NativeExecutor  # noqa: E402
from puna.runtime.reference import ReferenceExecutor  # noqa: E402
from puna.runtime.torch import TorchExecutor  # noqa: E402
from puna.weights.blocks.quant import dequantize  # noqa: E402
from puna.weights.blocks.tensor import RawTensor  # noqa: E402
from puna.weights.synthetic import synthetic_tensors  # noqa: E402

LOGPROB = 1e-4  # absolute, natural
N_TOKENS = 80  # over five chunks of 16

_SHAPE: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "intermediate_size_mlp": 160,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "max_position_embeddings": 256, "attention_chunk_size": 16, "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 1, "use_qk_norm": True, "attn_temperature_tuning": True, "floor_scale": 16,
    "attn_scale": 0.1, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "pad_token_id": 0,
    "router_aux_loss_coef": 0.0, "tie_word_embeddings": False, "no_rope_layers": [1, 1, 1, 0],
}  # fmt: skip
_SCALED = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "scout": {"rope_parameters": _SCALED},
    "maverick": {"interleave_moe_layer_step": 2, "use_qk_norm": False},
    "two_experts": {"num_experts_per_tok": 2},
    "one_chunk": {"attention_chunk_size": 128, "floor_scale": 8},
}
models = pytest.mark.parametrize("name", MODELS)


@dataclass(frozen=True)
class Model:
    config: ModelConfig
    tensors: dict[str, np.ndarray]
    tokens: list[int]
    expected: np.ndarray  # log-probabilities of the full pass by transformers
    greedy: list[int]  # the first twelve tokens, and transformers' continuation


@cache
def model(name: str) -> Model:
    torch.manual_seed(sum(map(ord, name)))
    hf_config = transformers.Llama4TextConfig(**(_SHAPE | MODELS[name]))
    hf_config._attn_implementation = "eager"
    hf = transformers.Llama4ForCausalLM(hf_config).eval().float()
    for parameter in hf.parameters():  # far from the tiny values of initialisation, where all is linear
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5)
    config = from_hf(hf_config.to_dict())
    tokens = torch.randint(0, config.vocab_size, (N_TOKENS,)).tolist()
    with torch.inference_mode():
        logits = hf(torch.tensor([tokens]), use_cache=False).logits[0]
        greedy = tokens[:12]
        for _ in range(24):
            greedy.append(int(hf(torch.tensor([greedy]), use_cache=False).logits[0, -1].argmax()))
    tensors = {}
    for key, value in hf.state_dict().items():
        for part in incoming("hf", key, config):
            tensors[part.ours] = np.ascontiguousarray(part.of(value.numpy()))
    names.check_shapes(config, {key: value.shape for key, value in tensors.items()})
    return Model(config, tensors, tokens, log_softmax(logits.numpy()), greedy)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def stored(tensors: dict[str, np.ndarray]) -> dict[str, RawTensor]:
    def data(values: np.ndarray) -> np.ndarray:
        return values.view(np.uint8).reshape(-1)

    return {name: RawTensor(name, "F32", t.shape, partial(data, t)) for name, t in tensors.items()}


def executor(kind: str, m: Model) -> Any:
    if kind == "numpy":
        return ReferenceExecutor(m.config, m.tensors, n_blocks=64, block_size=32)
    if kind == "native":
        return native(m)
    return TorchExecutor(
        m.config, stored(m.tensors), rope_table(m.config), cache_tokens=2048, device="cpu", dtype="f32"
    )


def native(m: Model, **options: Any) -> NativeExecutor:
    options = {"cache_tokens": 2048, "cache_type": "f32", "threads": 2} | options
    return NativeExecutor(m.config, stored(m.tensors), rope_table(m.config), **options)


def run(ex: Any, ids: Sequence[int], cuts: Sequence[int]) -> np.ndarray:
    rows, start = [], 0
    for n in cuts:
        rows.append(ex.step(Batch([Chunk(ids[start : start + n], start, [5, 2, 9], n)])).copy())
        start += n
    return log_softmax(np.concatenate(rows))


@models
@pytest.mark.parametrize("kind", ["numpy", "torch", "native"])
@pytest.mark.parametrize(
    "cuts",
    [[80], [1] * 80, [15, 1, 1, 63], [16, 16, 48], [40, 40]],
    ids=["full", "decode", "edge", "chunks", "half"],
)
def test_equals_transformers(name: str, kind: str, cuts: list[int]) -> None:
    m = model(name)
    np.testing.assert_allclose(run(executor(kind, m), m.tokens, cuts), m.expected, rtol=0, atol=LOGPROB)


@pytest.mark.parametrize("kind", ["numpy", "torch", "native"])
def test_a_mixed_batch(kind: str) -> None:
    m = model("scout")
    ex = executor(kind, m)
    ex.step(Batch([Chunk(m.tokens[:17], 0, [3], 0), Chunk(m.tokens[:31], 0, [4], 0)]))
    got = ex.step(
        Batch(
            [
                Chunk(m.tokens[17:18], 17, [3], 1),
                Chunk(m.tokens[31:32], 31, [4], 1),
                Chunk(m.tokens[:40], 0, [7, 8], 2),
            ]
        )
    )
    np.testing.assert_allclose(log_softmax(got), m.expected[[17, 31, 38, 39]], rtol=0, atol=LOGPROB)


@pytest.mark.parametrize(
    "change",
    [{"attention_chunk": None}, {"no_rope_every": None}, {"qk_norm": False}, {"query_temperature": None}],
)
def test_every_feature_matters(change: dict[str, Any]) -> None:
    """Leaving one out changes the answers far more than the tolerance."""
    m = model("scout")
    plain = Model(replace(m.config, **change), m.tensors, m.tokens, m.expected, m.greedy)
    assert np.abs(run(executor("numpy", plain), m.tokens, [80]) - m.expected).max() > 100 * LOGPROB


@models
@pytest.mark.parametrize("target", cpu_info()["available"])
def test_every_cpu_target_equals_transformers(name: str, target: str) -> None:
    m = model(name)
    got = run(native(m, target=target), m.tokens, [80])
    np.testing.assert_allclose(got, m.expected, rtol=0, atol=LOGPROB)


@models
def test_greedy_is_transformers(name: str) -> None:
    m = model(name)
    ids, ex = m.tokens[:12], native(m)
    logits = ex.step(Batch([Chunk(ids, 0, [5, 2, 9], 1)]))
    for _ in range(24):  # into the second chunk, and the third
        ids.append(int(logits[-1].argmax()))
        logits = ex.step(Batch([Chunk(ids[-1:], len(ids) - 1, [5, 2, 9], 1)]))
    assert ids == m.greedy


@models
@pytest.mark.parametrize("cache_type", ["bf16", "q8_0"])
def test_any_cut_gives_the_same_bits(name: str, cache_type: str) -> None:
    m = model(name)
    full = run(native(m, cache_type=cache_type, threads=1), m.tokens, [80])
    ex = native(m, cache_type=cache_type)
    for cuts in ([1] * 80, [15, 1, 1, 63], [16, 16, 48], [31, 2, 47]):
        np.testing.assert_array_equal(run(ex, m.tokens, cuts), full)


WIDE = ModelConfig(
    dim=256, n_layers=4, n_heads=10, n_kv_heads=2, head_dim=64, ffn_dim=512, vocab_size=160, norm_eps=1e-5,
    rope_theta=5e5, context_length=1024, tied=False, attention_chunk=192, no_rope_every=4, qk_norm=True,
    query_temperature=QueryTemperature(128, 0.1), experts=ExpertsConfig(5, 2, 256, 512, every=2),
)  # fmt: skip


@pytest.mark.parametrize("quant", ["q4_k_m", "q4_0", "bf16"])
def test_any_mix_gives_the_same_bits(quant: str) -> None:
    """Batches of several sequences, reused blocks, any number of threads; in spans cut by a chunk's end."""
    tensors, rope = synthetic_tensors(WIDE, quant), rope_table(WIDE)
    executors = [
        NativeExecutor(WIDE, tensors, rope, cache_tokens=8192, threads=n, max_tokens=2048, max_logits=2048)
        for n in (1, 2, 3)
    ]
    check_mixes(executors, WIDE.vocab_size, 3, 450)


def test_experts_of_many_formats_share_a_model() -> None:
    """Quantized weights, and the same numbers as floats on the oracle. Activations in int8 turn a near tie of
    experts now and then."""
    tensors = synthetic_tensors(WIDE, "q8_0")
    floats = {name: dequantize(t.data(), t.kind, t.shape) for name, t in tensors.items()}
    ids = list(range(100))
    oracle = ReferenceExecutor(WIDE, floats, n_blocks=8, block_size=32)
    ex = NativeExecutor(WIDE, tensors, rope_table(WIDE), cache_tokens=256, cache_type="f32")
    got, expected = (
        log_softmax(e.step(Batch([Chunk(ids, 0, [3, 1, 2, 0], 100)])).copy()) for e in (ex, oracle)
    )
    furthest_T = np.abs(np.exp(got) - np.exp(expected)).max(1)
    assert np.quantile(furthest_T, 0.95) < 0.02
    assert furthest_T.max() < 0.2
