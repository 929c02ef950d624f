"""Checkpoints: a configuration and every tensor that it needs, under our own names.

Knows what a Llama needs (from model/), not how its tensors are multiplied. The bytes of a tensor are read
when asked for, so that opening costs milliseconds and repacking can proceed one tensor at a time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

from puna.core import BadFile, BadInput
from puna.model import names
from puna.model.config import ModelConfig, from_gguf
from puna.weights.blocks.formats import n_bytes
from puna.weights.blocks.quant import dequantize
from puna.weights.blocks.recode import kernel_kind
from puna.weights.blocks.tensor import RawTensor
from puna.weights.files.gguf import GgufFile, write_gguf
from puna.weights.files.split import open_parts
from puna.weights.files.values import Metadata, Value, ValueType
from puna.weights.folder import locate


class OpenFile(Protocol):
    """A file of any format."""

    @property
    def path(self) -> Path: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Use as a context manager, or close() it once the tensors are packed."""

    config: ModelConfig
    metadata: Metadata  # of a GGUF file, whose tokenizer the text side reads from it; else empty
    tensors: Mapping[str, RawTensor]  # by our names, in the order of the file
    files: Sequence[OpenFile] = ()  # none where it is synthetic
    folder: Path | None = None  # of Hugging Face's or Meta's files, the tokenizer's among them
    quantization: str = ""  # how a folder's matrices were quantized, and by what; else empty

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.n_bytes for tensor in self.tensors.values())

    @property
    def packed_bytes(self) -> int:
        """Bytes of all tensors as the native executor keeps them: some formats grow (recode.py)."""
        return sum(n_bytes(kernel_kind(t.kind), t.shape) for t in self.tensors.values())

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(file.path for file in self.files)

    def close(self) -> None:
        for file in self.files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def open_checkpoint(path: str | os.PathLike[str], mmproj: str | os.PathLike[str] | None = None) -> Checkpoint:
    """Open a GGUF file (or all parts of a split one of which `path` is any), or the folder of a checkpoint in
    Hugging Face's or Meta's layout, or any file of it.

    `mmproj` is the vision file of a GGUF model; without it the one beside the file is taken, and without one
    the model is a text model.

    Nothing but the tables and the rotary factors is read. Raises Unsupported for another architecture, a
    tensor that no Llama has or a tensor type without an implementation; BadFile for whatever is damaged,
    missing or of the wrong shape; BadInput for a folder of several checkpoints, UnknownModel where there is
    nothing. Messages name the file and the part of it.
    """
    found = locate(path)
    if found.format == "gguf":
        return _open_gguf(found.path, None if mmproj is None else Path(mmproj))
    if mmproj is not None:
        raise BadInput(f"{found.path} holds its image encoder itself, an mmproj file is for a GGUF file")
    try:
        return _open_hf(found.path) if found.format == "hf" else _open_meta(found.path)
    except BadFile as error:
        message = str(error)
        named = message.startswith(f"{found.path}")
        raise type(error)(message if named else f"{found.path}: {message}") from None


def _open_gguf(path: Path, mmproj: Path | None) -> Checkpoint:
    files = tuple(open_parts(path))
    stored = {tensor.name: tensor for file in files for tensor in file.raw_tensors()}
    metadata = files[0].metadata
    try:
        config = from_gguf(
            metadata,
            {name: tensor.shape for name, tensor in stored.items()},
            lambda name: _floats(stored[name]),
        )
        if metadata["general.architecture"] != "llama":
            return _with_vision(path, mmproj, config, stored, files)
        if mmproj is not None:
            raise BadInput(f"{path} is a text model, an mmproj file has no place in it; leave it out")
        tensors = _by_our_names(stored)
        names.check_shapes(config, {name: tensor.shape for name, tensor in tensors.items()})
    except BadFile as error:
        raise type(error)(f"{path}: {error}") from None
    return Checkpoint(config, metadata, tensors, files)


def _with_vision(
    path: Path,
    mmproj: Path | None,
    config: ModelConfig,
    stored: dict[str, RawTensor],
    files: tuple[GgufFile, ...],
) -> Checkpoint:
    """A model that may have its image encoder in a second file."""
    from puna.weights.checkpoints import foreign  # most models are dense text
    from puna.weights.checkpoints import mmproj as vision_files

    found = vision_files.beside(path) if mmproj is None else mmproj
    config, vision = vision_files.join(config, files[0].metadata, found)
    if vision is not None:
        files = (*files, vision)
        stored = stored | {tensor.name: tensor for tensor in vision.raw_tensors()}
    tensors = foreign.to_ours("gguf", config, stored)
    names.check_shapes(config, {name: tensor.shape for name, tensor in tensors.items()})
    return Checkpoint(config, files[0].metadata, tensors, files)


def _open_hf(folder: Path) -> Checkpoint:
    from puna.weights.checkpoints import foreign, hf  # with its containers: most files are GGUF

    config = hf.read_config(folder)
    files = hf.open_files(folder)
    stored, quantization = hf.read_tensors(folder, files)
    tensors = foreign.to_ours("hf", config, stored)
    names.check_shapes(config, {name: tensor.shape for name, tensor in tensors.items()})
    return Checkpoint(config, Metadata({}), tensors, files, folder, quantization)


def _open_meta(folder: Path) -> Checkpoint:
    from puna.weights.checkpoints import meta

    opened = meta.open_folder(folder)
    return Checkpoint(opened.config, Metadata({}), opened.tensors, opened.files, folder, opened.quantization)


def _floats(tensor: RawTensor) -> list[float]:
    values: list[float] = dequantize(tensor.data(), tensor.kind, tensor.shape).tolist()
    return values


def _by_our_names(stored: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    tensors: dict[str, RawTensor] = {}
    for name, tensor in stored.items():
        ours = names.from_gguf(name)
        if ours is not None:
            tensors[ours] = replace(tensor, name=ours)
    return tensors


def write_checkpoint(
    checkpoint: Checkpoint, path: str | os.PathLike[str], tokenizer: Mapping[str, Value] | None = None
) -> None:
    """Store a checkpoint as one GGUF file (version 3), tensor by tensor.

    `tokenizer` holds the tokenizer.* entries where the checkpoint has none of its own. Without either, the
    file says so in llama.cpp's way (`no_vocab`): it runs on ids, there and here. Raises DiskFull.
    """
    metadata = {k: v for k, v in checkpoint.metadata.encoded.items() if not k.startswith("split.")}
    metadata |= tokenizer or {}
    metadata.setdefault("tokenizer.ggml.model", Value.of(ValueType.STRING, "no_vocab"))
    stored = [replace(tensor, name=names.to_gguf(name)) for name, tensor in checkpoint.tensors.items()]
    write_gguf(path, metadata, stored)
