"""What a model would take on this machine, and what would fit instead; nothing is loaded for it.

`memory.fit` decides at loading what is refused, with room for the worst step. This predicts what a process
that fills its context really holds at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from puna.core import BadValue
from puna.engine.config import EngineConfig
from puna.llm import backend
from puna.llm.backend import Backend
from puna.llm.config import LLMConfig
from puna.llm.load import needs_of
from puna.llm.memory import Needs
from puna.model import catalog, names
from puna.model.config import ModelConfig
from puna.model.sizes import encoder_bytes, image_bytes, kv_bytes
from puna.weights import store
from puna.weights.blocks.tensor import RawTensor
from puna.weights.files.values import Metadata
from puna.weights.footprint import weight_bytes
from puna.weights.load import Checkpoint, open_checkpoint
from puna.weights.quantize.mixes import tensor_kind

# Measured: the interpreter with our libraries, torch beside them, a word of a tokenizer.
PROCESS_BYTES, TORCH_BYTES, WORD_BYTES = 40_000_000, 250_000_000, 340

_BY_QUALITY = ("bf16", "q8_0", "q4_k_m", "q4_0")  # what to propose, best first


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes of a process that runs `batch` sequences of `context` tokens."""

    quant: str  # of the weights; "" where a file says
    context: int
    batch: int
    weights: int
    cache: int  # keys and values, of one picture in each sequence where they are kept apart
    seen_cache: int  # those that a token at the end still sees: less than `cache` with chunked attention
    activations: int
    process: int  # interpreter, libraries, tokenizer
    available: int | None  # None: the system does not tell

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations + self.process

    @property
    def fits(self) -> bool:
        return self.available is None or self.total <= self.available


@dataclass(frozen=True, slots=True)
class Fit:
    name: str
    backend: Backend
    asked: Estimate
    instead: tuple[Estimate, ...]  # what fits, best first, where `asked` does not


def estimate(model: str, asked: LLMConfig, quant: str | None = None, available: int | None = None) -> Fit:
    """What `model` takes as `asked`: a file as it is, or by its shape in format `quant`.

    A model of the catalog that is not on this machine is judged by its shape, in q4_k_m if nobody says.
    `available` replaces what the machine says. Raises what finding and opening a model raises, and BadValue.
    """
    chosen = backend.choose(asked)
    if available is None:
        available = backend.available(chosen)
    with _checkpoint(model, quant) as checkpoint:
        config = checkpoint.config
        context = asked.context or config.context_length
        if context > config.context_length:
            raise BadValue(
                f"context must be at most the {config.context_length:,} tokens that {model} was made for, "
                f"got {context:,}"
            )
        shown = quant or ("" if checkpoint.files else "q4_k_m")
        found = _estimate(checkpoint, asked, chosen, shown, context, asked.batch or 1, available)
        instead: tuple[Estimate, ...] = ()
        if not found.fits:
            instead = tuple(_alternatives(checkpoint, asked, chosen, found))
    return Fit(model, chosen, found, instead)


def _checkpoint(model: str, quant: str | None) -> Checkpoint:
    entry = catalog.get(model) if store.find(model) is None else None
    if entry is not None:
        return described(entry.config, quant or "q4_k_m")
    checkpoint = open_checkpoint(store.resolve(model))
    if quant is None:
        return checkpoint
    with checkpoint:
        return described(checkpoint.config, quant)


def described(config: ModelConfig, quant: str) -> Checkpoint:
    """A checkpoint of any Llama in a GGUF file type whose tensors have sizes only. Raises BadValue for
    another type.

    An image encoder takes two bytes for each number, as in the vision files (mmproj) beside such files.
    """
    weight_bytes(config, quant)  # knows the types
    tensors = {}
    for name, shape in names.shapes(config):
        kind = "F16" if name.startswith("vision") else tensor_kind(config, quant, name, shape)
        tensors[name] = RawTensor(name, kind, shape, _unread)
    return Checkpoint(config, Metadata({}), tensors)


def _unread() -> NDArray[np.uint8]:
    raise AssertionError("a tensor that only has a size was read")


def _estimate(
    checkpoint: Checkpoint,
    asked: LLMConfig,
    chosen: Backend,
    quant: str,
    context: int,
    batch: int,
    available: int | None,
) -> Estimate:
    config = checkpoint.config
    needs = _needs(checkpoint, asked, chosen)
    words = config.vocab_size * WORD_BYTES
    pictures = image_bytes(config, asked.cache_type) * batch
    return Estimate(
        quant=quant,
        context=context,
        batch=batch,
        weights=needs.weight_bytes,
        cache=needs.cache_bytes(needs.padded(context) * batch) + pictures,
        seen_cache=kv_bytes(config, context, asked.cache_type) * batch + pictures,
        activations=_activations(config, context, batch),
        process=PROCESS_BYTES + words + (TORCH_BYTES if chosen.is_torch else 0),
        available=available,
    )


def _activations(config: ModelConfig, context: int, batch: int) -> int:
    """Bytes of the arrays of the largest step: float32, beside them what matrices multiply, and logits.

    Buffers of the native plan: x and its norm, q, k, v, the attention's result, the gated product; beside
    them those of a picture that is encoded.
    """
    engine = EngineConfig()
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    wide = config.ffn_dim
    if config.experts is not None:  # of all experts that a token is sent to, and the one that they share
        experts = config.experts
        wide = max(wide, experts.n_active * experts.expert_ffn_dim + experts.shared_ffn_dim)
    floats = 2 * config.dim + 2 * queries + 2 * keys + wide
    multiplied = config.dim + 2 * queries + wide
    rows = min(batch, engine.max_rows(config.vocab_size))
    tokens = min(engine.max_step_tokens, context * batch)
    text = tokens * (4 * floats + 3 * multiplied // 2) + 4 * rows * config.vocab_size
    return text + encoder_bytes(config)


def _needs(checkpoint: Checkpoint, asked: LLMConfig, chosen: Backend) -> Needs:
    needs = needs_of("", checkpoint, asked.cache_type, EngineConfig(), chosen)
    return replace(needs, weight_bytes=backend.weight_bytes(checkpoint, chosen))


def _alternatives(
    checkpoint: Checkpoint, asked: LLMConfig, chosen: Backend, found: Estimate
) -> Iterator[Estimate]:
    """The same weights with the context that fits, then smaller formats with as much of it as fits."""
    assert found.available is not None
    tried: list[tuple[str, Checkpoint]] = [(found.quant, checkpoint)]
    tried += [(quant, described(checkpoint.config, quant)) for quant in _BY_QUALITY]
    seen: set[int] = set()
    for quant, other in tried:
        whole = _estimate(other, asked, chosen, quant, found.context, found.batch, found.available)
        smaller = other is checkpoint or whole.weights < found.weights
        if not smaller or whole.weights in seen:
            continue
        seen.add(whole.weights)
        if whole.fits:
            yield whole
            continue
        needs = _needs(other, asked, chosen)
        pictures = image_bytes(other.config, asked.cache_type) * found.batch
        room = found.available - (whole.total - whole.cache + pictures)
        context = needs.tokens_in(room, found.batch)
        if context > 0:
            yield _estimate(other, asked, chosen, quant, context, found.batch, found.available)
