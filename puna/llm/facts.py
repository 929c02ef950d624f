"""What the files of a model say of it, for a server that lists it. Nothing is multiplied here."""

from __future__ import annotations

import hashlib
from math import isfinite
from pathlib import Path
from typing import Any

from puna.core import BadInput
from puna.llm.config import DEFAULT_PARAMS
from puna.llm.load import chat_format_of, read_tokenizer
from puna.model.sizes import n_parameters
from puna.server.served import ModelFacts
from puna.text.chat import encode_chat
from puna.text.tokenizer import Tokenizer
from puna.weights import store
from puna.weights.load import Checkpoint, open_checkpoint
from puna.weights.pull.fetch import hash_file
from puna.weights.quantize.mixes import FILE_TYPES

_LONG = frozenset(f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "scores", "merges"))
_LONGEST = 16  # items of a list that is shown


def facts_of(path: Path, chat_format: str | None = None) -> ModelFacts:
    """Reads every byte of a model that is not in the store, for its checksum: may take long.

    `chat_format` is what prompts are built in, as asked for. Raises what opening the model raises.
    """
    with open_checkpoint(path) as checkpoint:
        tokenizer = read_tokenizer(checkpoint)
        chat_format = chat_format_of(str(path), tokenizer, chat_format)
        named = [key for key in checkpoint.metadata if key not in _LONG]
        metadata = {key: checkpoint.metadata[key] for key in named}
        metadata = {key: value for key, value in metadata.items() if _is_short(value)} | _shape(checkpoint)
        return ModelFacts(
            format="gguf" if checkpoint.folder is None else "safetensors" if _is_hf(checkpoint) else "pth",
            family=str(metadata["general.architecture"]),
            n_parameters=n_parameters(checkpoint.config),
            quantization=_quantization(checkpoint),
            sha256=_sha256(path, checkpoint),
            template=tokenizer.chat_template or "",
            licence=_licence(path, checkpoint),
            capabilities=_capabilities(checkpoint, tokenizer, chat_format),
            metadata=metadata,
            default_params=DEFAULT_PARAMS,
        )


def _is_short(value: Any) -> bool:
    """Fit for JSON, too."""
    if isinstance(value, list | tuple):
        return len(value) <= _LONGEST and all(map(_is_short, value))
    return isfinite(value) if isinstance(value, float) else isinstance(value, str | int | bool)


def _is_hf(checkpoint: Checkpoint) -> bool:
    return any(path.suffix == ".safetensors" for path in checkpoint.paths)


def _shape(checkpoint: Checkpoint) -> dict[str, Any]:
    """The keys that clients look for, in GGUF's names, whatever the format."""
    config = checkpoint.config
    is_llama4 = config.experts is not None
    found = checkpoint.metadata.get("general.architecture", "llama4" if is_llama4 else "llama")
    return {
        "general.architecture": found,
        "general.parameter_count": n_parameters(config),
        f"{found}.context_length": config.context_length,
        f"{found}.embedding_length": config.dim,
        f"{found}.block_count": config.n_layers,
        f"{found}.attention.head_count": config.n_heads,
        f"{found}.attention.head_count_kv": config.n_kv_heads,
    }


def _quantization(checkpoint: Checkpoint) -> str:
    """The file type that the file names, or else the kind of most of its bytes."""
    number = checkpoint.metadata.get("general.file_type")
    named = next((name for name, kind in FILE_TYPES.items() if kind.number == number), None)
    if named is not None:
        return named.upper()
    bytes_of: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        bytes_of[tensor.kind] = bytes_of.get(tensor.kind, 0) + tensor.n_bytes
    return max(bytes_of, key=lambda kind: bytes_of[kind])


def _sha256(path: Path, checkpoint: Checkpoint) -> str:
    stored = _stored(path)
    if stored is not None:
        return stored.blob.removeprefix("sha256-")
    sums = [hash_file(file, file.name, lambda *_: None) for file in checkpoint.paths]
    lines = "".join(f"{found}  {file.name}\n" for found, file in zip(sums, checkpoint.paths, strict=True))
    return sums[0] if len(sums) == 1 else hashlib.sha256(lines.encode()).hexdigest()


def _stored(path: Path) -> store.StoredModel | None:
    return next((stored for stored in store.list_models() if stored.path == path), None)


def _licence(path: Path, checkpoint: Checkpoint) -> str:
    stored = _stored(path)
    named = stored.licence if stored is not None else None
    return named or str(checkpoint.metadata.get("general.license", ""))


def _capabilities(checkpoint: Checkpoint, tokenizer: Tokenizer, chat_format: str | None) -> tuple[str, ...]:
    architecture = checkpoint.metadata.get("general.architecture", "llama")
    found = {
        "completion": True,
        "tools": _takes_tools(tokenizer, chat_format),
        "vision": checkpoint.config.vision is not None,
        "insert": {"PRE", "SUF", "MID"} <= set(tokenizer.infill_ids),
        "embedding": f"{architecture}.pooling_type" in checkpoint.metadata,
    }
    return tuple(name for name, has in found.items() if has)


def _takes_tools(tokenizer: Tokenizer, chat_format: str | None) -> bool:
    """A template may pass over tools in silence, a builder says that it knows none."""
    if chat_format is None and tokenizer.chat_template is not None:
        return "tools" in tokenizer.chat_template
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
    try:
        encode_chat(tokenizer, [{"role": "user", "content": "a"}], tools=[tool], chat_format=chat_format)
    except BadInput:
        return False
    return True
