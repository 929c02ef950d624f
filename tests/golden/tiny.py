"""Tiny random checkpoints, one per generation and rope scaling, that both sides of a comparison can make.

No weights are stored: values come from the raw output of a seeded Philox generator, which NumPy keeps
stable, by exact arithmetic. make_tiny.py runs them through transformers and llama.cpp and stores the
answers in tiny/.

    tiny = TINY["llama31"]
    tiny.config, tiny.tensors()           for an executor (our names, float32, Meta's row order)
    write_gguf(tiny, path)                the same as a GGUF file, F32 or any kind quant.quantize makes
    golden(tiny)                          what the reference engines answered
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.model.config import ModelConfig, from_hf
from puna.model.names import shapes, to_gguf
from puna.model.rope import rope_table

FOLDER = Path(__file__).parent / "tiny"
N_TOKENS = 96  # of the full pass
N_PROMPT, N_GREEDY = 16, 24  # of the greedy continuation


@dataclass(frozen=True)
class Tiny:
    """A checkpoint, and the contexts of its two runs, which matter to dynamic and longrope scaling."""

    name: str
    hf: dict[str, Any]  # its config.json
    full_context: int = 0  # 0: the checkpoint's own
    greedy_context: int = 0

    @property
    def config(self) -> ModelConfig:
        return from_hf(self.hf)

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Our names -> float32, rows of wq and wk in Meta's order."""
        return dict(_tensors(self))

    def tokens(self) -> list[int]:
        """The N_TOKENS ids of the full pass."""
        raw = np.random.Philox(key=_seed(self) + 1).random_raw(N_TOKENS)
        return (raw % np.uint64(self.config.vocab_size)).astype(int).tolist()


def _tiny(name: str, full_context: int = 0, greedy_context: int = 0, **changes: Any) -> Tiny:
    hf = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "vocab_size": 96, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    }  # fmt: skip
    hf.update(changes)
    return Tiny(name, {k: v for k, v in hf.items() if v is not None}, full_context, greedy_context)


def _llama3(factor: float, original: int) -> dict[str, Any]:
    return {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }  # fmt: skip


_LONGROPE = {
    "type": "longrope", "original_max_position_embeddings": 32, "factor": 4.0,
    "short_factor": [1.0 + 0.02 * i for i in range(16)], "long_factor": [1.0 + 0.4 * i for i in range(16)],
}  # fmt: skip

TINY = {
    tiny.name: tiny
    for tiny in (
        _tiny("llama1", num_key_value_heads=None, rms_norm_eps=1e-6, rope_theta=None),
        _tiny("llama2"),
        _tiny("llama3", rope_theta=5e5, hidden_size=192, num_attention_heads=6),
        _tiny("llama31", rope_theta=5e5, num_attention_heads=2, num_key_value_heads=1,
              max_position_embeddings=512, rope_scaling=_llama3(8.0, 64)),
        _tiny("llama32", rope_theta=5e5, tie_word_embeddings=True, max_position_embeddings=1024,
              rope_scaling=_llama3(32.0, 32)),
        _tiny("wide", hidden_size=96, num_attention_heads=3, num_key_value_heads=1, head_dim=64),
        _tiny("linear", rope_scaling={"type": "linear", "factor": 4.0}), _tiny("dynamic", 96, 48,
        max_position_embeddings=48, rope_scaling={"type": "dynamic", "factor": 2.0}), _tiny("yarn",
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}),
        _tiny("longrope", 96, 32, rope_scaling=_LONGROPE),
    )
}  # fmt: skip


def _seed(tiny: Tiny) -> int:
    return 1000 * (1 + list(TINY).index(tiny.name))


def _tensors(tiny: Tiny) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Uniform values, wide enough that attention is peaked and errors show in the log-probabilities."""
    cfg = tiny.config
    bits = np.random.Philox(key=_seed(tiny))
    for name, shape in shapes(cfg):
        raw = bits.random_raw(int(np.prod(shape))).reshape(shape)
        uniform = (raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - np.float32(1)
        gain = {"wq": 3.0, "wk": 3.0, "output": 4.0, "tok_embeddings": 3.0 if cfg.tied else 16.0}
        if len(shape) == 1:
            yield name, np.float32(1) + uniform * np.float32(0.5)
        else:
            yield name, uniform * np.float32(gain.get(name.split(".")[-1], 2.0) / shape[1] ** 0.5)


def golden(tiny: Tiny) -> dict[str, NDArray[Any]]:
    """Stored answers.

    By transformers: `logprobs` [N_TOKENS, V] of the full pass; `greedy` and `greedy_logprobs` of up to
    N_GREEDY tokens after the first N_PROMPT. By llama.cpp: `llamacpp_logprobs` [N_TOKENS, V], for the
    scalings that GGUF can describe.
    """
    with np.load(FOLDER / f"{tiny.name}.npz") as arrays:
        return dict(arrays)


def gguf_metadata(tiny: Tiny) -> dict[str, int | float | str]:
    """llama.* keys of a file with no vocabulary."""
    cfg, s = tiny.config, tiny.config.rope_scaling
    metadata: dict[str, int | float | str] = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "no_vocab",
        "llama.vocab_size": cfg.vocab_size,
        "llama.context_length": cfg.context_length,
        "llama.embedding_length": cfg.dim,
        "llama.block_count": cfg.n_layers,
        "llama.feed_forward_length": cfg.ffn_dim,
        "llama.attention.head_count": cfg.n_heads,
        "llama.attention.head_count_kv": cfg.n_kv_heads,
        "llama.attention.key_length": cfg.head_dim,
        "llama.attention.value_length": cfg.head_dim,
        "llama.attention.layer_norm_rms_epsilon": cfg.norm_eps,
        "llama.rope.dimension_count": cfg.head_dim,
        "llama.rope.freq_base": cfg.rope_theta,
    }
    if s is not None and s.kind in ("linear", "yarn"):
        metadata |= {"llama.rope.scaling.type": s.kind, "llama.rope.scaling.factor": s.factor}
    if s is not None and s.kind in ("yarn", "longrope"):
        metadata["llama.rope.scaling.original_context_length"] = s.original_context
    if s is not None and s.kind == "longrope":
        metadata |= {"llama.rope.scaling.type": s.kind, "llama.rope.scaling.attn_factor": s.attention}
    return metadata


def gguf_tensors(tiny: Tiny) -> dict[str, NDArray[np.float32]]:
    """GGUF names -> float32, with the factor tensors by which the format says llama3 and longrope."""
    cfg, s = tiny.config, tiny.config.rope_scaling
    tensors = {to_gguf(name): array for name, array in _tensors(tiny)}
    if s is not None and s.kind == "llama3":
        plain = cfg.rope_theta ** -(np.arange(0, cfg.head_dim, 2) / cfg.head_dim)
        tensors["rope_freqs.weight"] = (plain / rope_table(cfg).frequencies).astype(np.float32)
    if s is not None and s.kind == "longrope":
        tensors["rope_factors_short.weight"] = np.array(s.short_factors, np.float32)
        tensors["rope_factors_long.weight"] = np.array(s.long_factors, np.float32)
    return tensors


def in_gguf(tiny: Tiny) -> bool:
    """Whether GGUF can describe the checkpoint: it has no name for dynamic NTK scaling."""
    return tiny.name != "dynamic"


def write_gguf(tiny: Tiny, path: Path, kind: str = "F32") -> None:
    """Write the checkpoint; matrices in `kind`, vectors in F32. The file has no tokenizer."""
    from puna.weights.blocks import quant
    from puna.weights.blocks.tensor import RawTensor
    from puna.weights.files import gguf
    from puna.weights.files.values import Value, ValueType

    types = {int: ValueType.UINT32, float: ValueType.FLOAT32, str: ValueType.STRING}
    metadata = {key: Value.of(types[type(value)], value) for key, value in gguf_metadata(tiny).items()}
    tensors = []
    for name, array in gguf_tensors(tiny).items():
        used = kind if array.ndim == 2 else "F32"
        tensors.append(RawTensor(name, used, array.shape, partial(quant.quantize, array, used)))
    gguf.write_gguf(path, metadata, tensors)
