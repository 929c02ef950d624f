"""From a model file to a running engine.

Tensors are packed by a thread that does not need the interpreter for most of it; meanwhile the tokenizer is
built and the modules are imported that packing does not need.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from puna.bench.jobs import cost_of
from puna.core import BadValue, Cancelled, PunaError
from puna.engine.config import EngineConfig
from puna.llm import backend, draft
from puna.llm.backend import Backend
from puna.llm.config import LLMConfig
from puna.llm.memory import Needs, Room, extremes, fit
from puna.llm.speed import Speed
from puna.model.config import ModelConfig
from puna.model.rope import rope_table
from puna.model.sizes import encoder_bytes, image_bytes, local_layers, local_window
from puna.runtime.images import IMAGE_BYTES, MAX_SEEN
from puna.runtime.native import SPAN, NativeExecutor, cache_bytes_per_token
from puna.weights.load import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from puna.engine.bridge import EngineThread
    from puna.text.tokenizer import Tokenizer

_NEEDED_NEXT = ("puna.engine.bridge", "puna.llm.answer")
_NEEDED_TO_CHAT = ("jinja2.sandbox", "puna.text.chat")

Progress = Callable[[str, int, int | None], None]  # what is done, bytes done, bytes in all if known


@dataclass(frozen=True, slots=True)
class Loaded:
    config: ModelConfig  # what the file says
    tokenizer: Tokenizer
    pooling: str  # of embeddings, as the file asks for it; "last" where it does not
    room: Room
    memory_bytes: int  # that weights, a full cache and the work of a step take
    engine: EngineThread
    threads: int
    seconds: float  # that loading took
    speed: Speed


def load(path: Path, asked: LLMConfig, progress: Progress | None = None) -> Loaded:
    """Load a model: a file, or the folder of a checkpoint. `progress` is called from another thread.

    Raises BadFile or Unsupported for the file, BadValue and DoesNotFit for what is asked.
    """
    began_at = perf_counter()
    engine_config = _engine_config(asked)
    with open_checkpoint(path, asked.mmproj) as checkpoint, draft.opened(asked) as other:
        chosen, pooling = backend.choose(asked), _pooling(checkpoint)
        needs = _needs(path, checkpoint, other, asked, engine_config, chosen)
        room = fit(needs, asked.context, asked.batch, _least(asked.memory, backend.available(chosen)))
        executor, tokenizer = _pack_and_tokenize(checkpoint, asked, room, engine_config, chosen, progress)
        cost = None if chosen.is_torch else cost_of(checkpoint, asked.cache_type)
        proposer = None
        try:
            if other is not None:
                proposer = draft.load(other, tokenizer, asked, room, engine_config, chosen)
        except PunaError:
            executor.close()
            raise
    from puna.engine.bridge import EngineThread
    from puna.engine.engine import Engine

    threads = executor.threads
    engine = EngineThread(Engine(executor, engine_config, proposer))
    n_bytes = needs.total(room.cache_tokens)
    speed, seconds = Speed(cost, threads, backend.cpu_target(asked.prefer)), perf_counter() - began_at
    return Loaded(checkpoint.config, tokenizer, pooling, room, n_bytes, engine, threads, seconds, speed)


def measure(path: Path, asked: LLMConfig) -> tuple[int, int]:
    """Bytes that a model takes at least and at most, as asked for; nothing is loaded for it.

    Raises what `load` raises for the file.
    """
    with open_checkpoint(path, asked.mmproj) as checkpoint, draft.opened(asked) as other:
        needs = _needs(path, checkpoint, other, asked, _engine_config(asked), backend.choose(asked))
        return extremes(needs, asked.context, asked.batch)


def _engine_config(asked: LLMConfig) -> EngineConfig:
    if not asked.speculate:
        return EngineConfig(max_guesses=0)
    return EngineConfig(max_guesses=backend.most_guesses(backend.choose(asked), asked.prefer))


def _least(*limits: int | None) -> int | None:
    """The least of the limits that are known."""
    return min((limit for limit in limits if limit is not None), default=None)


def _pooling(checkpoint: Checkpoint) -> str:
    """What a GGUF file says by llama.cpp's numbers. Llamas that answer say nothing, or "none": as Ollama does
    on top of llama.cpp, the row of the last token is taken then, the only one that has seen all of the text.
    """
    metadata = checkpoint.metadata
    number = metadata.get(f"{metadata.get('general.architecture')}.pooling_type", 0)
    return {0: "last", 1: "mean", 2: "cls", 3: "last", 4: "rank"}.get(number, f"number {number}")


def _needs(
    path: Path,
    checkpoint: Checkpoint,
    other: Checkpoint | None,
    asked: LLMConfig,
    engine_config: EngineConfig,
    chosen: Backend,
) -> Needs:
    """What a model and its draft, if there is one, take in memory."""
    name = path.name if path.is_dir() else path.stem
    config = checkpoint.config
    if asked.context is not None and asked.context > config.context_length:
        raise BadValue(
            f"context must be at most the {config.context_length:,} tokens that {name} was made for, "
            f"got {asked.context:,}"
        )
    needs = needs_of(name, checkpoint, asked.cache_type, engine_config, chosen)
    needs = replace(needs, weight_bytes=backend.weight_bytes(checkpoint, chosen))
    if other is None:
        return needs
    alone = replace(chosen, ranks=1)
    beside = needs_of("", other, asked.cache_type, engine_config, alone)
    return draft.together(needs, replace(beside, weight_bytes=backend.weight_bytes(other, alone)))


def needs_of(
    name: str,
    checkpoint: Checkpoint,
    cache_type: str,
    engine_config: EngineConfig,
    chosen: Backend = backend.NATIVE,
) -> Needs:
    """What the model of a file takes in memory."""
    config = checkpoint.config
    window = local_window(config, NativeExecutor.block_size if chosen.is_torch else SPAN)
    n_local = len(local_layers(config)) if window else 0
    layer_bytes = cache_bytes_per_token(config, cache_type) // config.n_layers
    if chosen.ranks > 1:  # each has some of the key/value heads, on a device of its own or in one memory
        heads = max(1, config.n_kv_heads // chosen.ranks) * (chosen.ranks if chosen.device == "cpu" else 1)
        layer_bytes = layer_bytes * heads // config.n_kv_heads
    n_values = engine_config.max_step_tokens * (4 * config.dim + 2 * config.ffn_dim)
    n_logits = engine_config.max_rows(config.vocab_size) * config.vocab_size
    return Needs(
        name,
        weight_bytes=checkpoint.packed_bytes,
        token_bytes=layer_bytes * (config.n_layers - n_local),
        # float32, beside it quantized or bfloat16
        workspace_bytes=6 * n_values + 4 * n_logits + _image_workspace(config, cache_type),
        context=config.context_length,
        block_tokens=NativeExecutor.block_size,
        local_token_bytes=layer_bytes * n_local,
        local_window=window,
        step_tokens=engine_config.max_step_tokens,
    )


def _image_workspace(config: ModelConfig, cache_type: str) -> int:
    """Bytes that encoding a picture takes, and the pictures that are kept."""
    kept = MAX_SEEN * image_bytes(config, cache_type)
    if not config.cross_attention:  # those in use can be dropped too
        kept = min(IMAGE_BYTES, kept)
    return encoder_bytes(config) + kept


def _pack_and_tokenize(
    checkpoint: Checkpoint,
    asked: LLMConfig,
    room: Room,
    engine_config: EngineConfig,
    chosen: Backend,
    progress: Progress | None,
) -> tuple[Any, Tokenizer]:
    is_unwanted = threading.Event()
    n_packed = 0

    def tick(n_bytes: int) -> None:
        nonlocal n_packed
        n_packed += n_bytes
        if is_unwanted.is_set():
            raise Cancelled("loading was interrupted")
        if progress is not None:  # vectors are not packed, and padding is not in the file
            progress("loading", min(n_packed, checkpoint.n_bytes), checkpoint.n_bytes)

    def pack() -> Any:
        config = replace(checkpoint.config, context_length=room.context)
        # what we cut down ourselves to fit into memory must not change what the model computes
        rope = rope_table(checkpoint.config, asked.context)
        return backend.make_executor(
            chosen, config, checkpoint, rope, asked, room.cache_tokens, engine_config, tick
        )

    with ThreadPoolExecutor(1, "puna-load") as pool:
        try:
            packing = pool.submit(pack)
            tokenizer = _text_side(checkpoint)
            return_freed_memory()  # before the last weights are packed: at the peak, that is
            executor = packing.result()
        finally:
            is_unwanted.set()  # where something else went wrong; leaving the block waits for the packing
    if progress is not None:
        progress("loading", checkpoint.n_bytes, checkpoint.n_bytes)
    return executor, tokenizer


def read_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a checkpoint of any format; raises BadFile or Unsupported."""
    from puna.text.tokenizer import Tokenizer

    if checkpoint.folder is not None:
        rows = checkpoint.config.vocab_size + checkpoint.config.n_image_embeddings
        return Tokenizer.from_folder(checkpoint.folder, rows)
    return Tokenizer.from_gguf(checkpoint.metadata)


def chat_format_of(model: str, tokenizer: Tokenizer, asked: str | None) -> str | None:
    """The format to build prompts in; None where the template or the control tokens of the file tell it."""
    if asked is not None or tokenizer.chat_template is not None:
        return asked
    from puna.model import catalog  # most files have a template

    entry = catalog.get(model)
    return None if entry is None or entry.chat_format == "none" else entry.chat_format


def _text_side(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer, and the modules of what is due next, while there is time."""
    tokenizer = read_tokenizer(checkpoint)
    for name in _NEEDED_NEXT if tokenizer.chat_template is None else (*_NEEDED_NEXT, *_NEEDED_TO_CHAT):
        import_module(name)
    return tokenizer


def return_freed_memory() -> None:
    """Give the system back what building the tokenizer took for a moment, where the C library is glibc.

    It would keep 4 MB of it with SmolLM2, which takes 150 in all.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
