"""What a checkpoint becomes in another format: its tensors, files and description, laid out before any byte.

Nothing is written here (convert.py does) and tensors are read when they are asked for, but for the vectors
of a GGUF file. Shapes: R rows, X row length.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile, BadValue, Unsupported
from puna.model import names
from puna.model.config import ModelConfig
from puna.weights.blocks.formats import CODED, FORMATS, n_bytes
from puna.weights.blocks.quant import dequantize, quantize
from puna.weights.blocks.tensor import RawTensor
from puna.weights.checkpoints import foreign, meta, mmproj
from puna.weights.describe.config import hf_config, meta_params, rope_factors, same_model, text_metadata
from puna.weights.describe.pictures import hf_processor_files
from puna.weights.files import gguf, safetensors
from puna.weights.files.layout import Layout, Slice
from puna.weights.files.values import Value, ValueType
from puna.weights.folder import INDEX, Format
from puna.weights.load import Checkpoint
from puna.weights.plain import plain
from puna.weights.quantize.encode import encoded
from puna.weights.quantize.mixes import FILE_TYPES, tensor_kind, wanted_kind

PLAIN = ("F32", "F16", "BF16")  # kinds that every format can store
SHARD_BYTES = 5 * 10**9  # of a safetensors file, transformers' max_shard_size
_FILE_TYPES = {FILE_TYPES[name].kind: FILE_TYPES[name].number for name in ("f32", "f16", "bf16")}
_QUANTIZATION_VERSION = 2  # of the block formats, ggml's GGML_QNT_VERSION

# GGUF stores vectors as F32, as llama.cpp needs them; what they were before stands under this key.
_VECTOR_KIND = "puna.vector_type"

_CHUNK = 1 << 22  # values looked at or cast at a time


@dataclass(frozen=True, slots=True)
class Texts:
    """The tokenizer and chat template, in the forms that the target may need."""

    metadata: Mapping[str, Any]  # tokenizer.* in GGUF's terms; empty where there is none
    files: Mapping[str, bytes]  # for the folder of a checkpoint, config.json's keys for special tokens apart
    hf_keys: Mapping[str, Any]  # those keys: bos_token_id, eos_token_id, pad_token_id
    image_keys: Mapping[str, Any] = field(default_factory=dict)  # and those of Llama 4's images


@dataclass(frozen=True, slots=True)
class Quantization:
    """Block formats for the matrices of a GGUF file."""

    file_type: str  # of mixes.FILE_TYPES
    importance: Mapping[str, NDArray[np.float32]] | None = None  # by our names, see encode.encoded
    threads: int = 1

    def kind(self, config: ModelConfig, name: str, shape: tuple[int, ...]) -> str:
        return tensor_kind(config, self.file_type, name, shape, weighted=self.importance is not None)

    def of(self, tensor: RawTensor, config: ModelConfig) -> RawTensor:
        if tensor.name.startswith("vision"):  # image encoders are small, and stay as they are
            return tensor
        importance = (self.importance or {}).get(tensor.name)
        return encoded(tensor, self.kind(config, tensor.name, tensor.shape), importance, self.threads)


@dataclass(frozen=True, slots=True)
class Target:
    """A checkpoint to be written."""

    format: Format
    checkpoint: Checkpoint  # that it is made of
    config: ModelConfig
    tensors: Sequence[RawTensor]  # under our names and in our order of rows, as the target has to hold them
    sources: Sequence[RawTensor]  # what the layouts' pieces are parts of
    layouts: Sequence[Layout]
    files: Mapping[str, bytes]  # small ones beside them, by name
    notes: Sequence[str] = ()  # what the format has no place for, a sentence each
    is_costly: bool = False  # its tensors take so long to make that they are verified by their checksums

    @property
    def n_bytes(self) -> int:
        return sum(layout.size for layout in self.layouts) + sum(map(len, self.files.values()))

    def difference(self, found: ModelConfig) -> str | None:
        """The name of a setting by which `found` is another model, or None."""
        return same_model(self.config, found)


def plan(
    checkpoint: Checkpoint,
    form: Format,
    texts: Texts,
    *,
    name: str = "model",
    dtype: str | None = None,
    n_files: int = 1,
    shard_bytes: int = SHARD_BYTES,
    quantization: Quantization | None = None,
) -> Target:
    """Lay out `checkpoint` as `form`: `name` is the GGUF file's (and general.name's), `dtype` F32, F16 or
    BF16 for all matrices (None keeps each), `n_files` Meta's model-parallel size, `shard_bytes` the most of a
    safetensors file, `quantization` the block formats of a GGUF file.

    Raises Unsupported for what the format cannot hold, BadValue for options that do not fit the model.
    """
    given, checkpoint = checkpoint, plain(checkpoint)
    if given is not checkpoint:
        target = plan(
            checkpoint, form, texts, name=name, dtype=dtype, n_files=n_files, shard_bytes=shard_bytes,
            quantization=quantization,
        )  # fmt: skip
        return replace(target, notes=[*target.notes, _folded(given)], is_costly=True)
    if quantization is not None:
        return _quantized_target(checkpoint, texts, name, quantization)
    tensors = _tensors(checkpoint, form, dtype)
    if form == "gguf":
        return _gguf_target(checkpoint, tensors, texts, name, _FILE_TYPES.get(_kind_of(tensors)))
    kind = _kind_of(tensors)
    config = checkpoint.config
    # Meta's code has no tied output: its files repeat the table
    held = replace(config, tied=config.tied and form != "meta")
    sources = foreign.to_foreign(form, held, {tensor.name: tensor for tensor in tensors})
    if form == "hf":
        layouts, index = safetensors.sharded_layouts([Slice(s.name, s) for s in sources], shard_bytes)
        described = _with_keys(hf_config(config, kind), texts)
        files = {**_processor_files(config), **texts.files, "config.json": _json(described)}
        if index is not None:
            files[INDEX] = _json(index)
        return Target("hf", checkpoint, config, tensors, sources, layouts, files)
    layouts = meta.shard_layouts(config, sources, n_files)
    params, read_back = _params(config)
    files = {**texts.files, "params.json": _json(params)}
    notes = []
    if read_back.context_length != config.context_length:
        notes.append(
            f"params.json has no place for the context of {config.context_length:,} tokens; readers assume "
            f"{read_back.context_length:,}"
        )
    return Target("meta", checkpoint, config, tensors, sources, layouts, files, notes)


def _folded(checkpoint: Checkpoint) -> str:
    cfg = checkpoint.config
    what = ["adapters are merged into their matrices"] if cfg.lora_rank else []
    what += ["the Hadamard transform is part of w2"] if cfg.ffn_hadamard else []
    return f"{' and '.join(what)}, whose numbers are no longer those of {checkpoint.quantization}"


def _with_keys(described: dict[str, Any], texts: Texts) -> dict[str, Any]:
    """config.json with the ids of special tokens, also where it describes the text decoder by itself."""
    keys = texts.hf_keys
    if "text_config" in described:
        described = {**described, "text_config": {**described["text_config"], **keys}}
    if described["model_type"] == "llama4":
        described = {**described, **texts.image_keys}
    return {**described, **keys}


def _processor_files(config: ModelConfig) -> dict[str, bytes]:
    """What says how pictures become tiles, where the source has no such files to copy."""
    if config.vision is None:
        return {}
    return {name: _json(described) for name, described in hf_processor_files(config.vision).items()}


def _params(config: ModelConfig) -> tuple[dict[str, Any], ModelConfig]:
    """params.json, and what its readers make of it; Unsupported where a reader would take it for another
    model.
    """
    params = meta_params(config)
    read_back = replace(meta.read_params(params, config.vocab_size), tied=config.tied)
    difference = same_model(config, read_back)
    if difference is not None:
        raise Unsupported(
            f"params.json cannot state this model's {difference}, a reader would assume another; convert to "
            "hf or gguf"
        )
    return params, read_back


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _kind_of(tensors: Sequence[RawTensor]) -> str:
    """The kind of most matrices."""
    kinds = [tensor.kind for tensor in tensors if not is_vector(tensor)]
    return max(sorted(set(kinds)), key=kinds.count)


# Matrices that llama.cpp wants as F32, as it does vectors: routers, and two of the image encoder.
_AS_VECTORS = (".router", "vision.conv1", "vision.positional_embedding")


def is_vector(tensor: RawTensor) -> bool:
    """Whether a tensor (our name) is F32 in a GGUF file whatever the others are."""
    return len(tensor.shape) == 1 or tensor.name.endswith(_AS_VECTORS)


def _tensors(checkpoint: Checkpoint, form: Format, dtype: str | None) -> list[RawTensor]:
    """All tensors of the model in its order, each of the kind that the target is to hold."""
    wanted = [name for name, _ in names.shapes(checkpoint.config)]
    found = [checkpoint.tensors[name] for name in wanted]
    if (
        form == "meta" and checkpoint.config.tied
    ):  # Meta's code has no tied output: its files repeat the table
        table = checkpoint.tensors["tok_embeddings"]
        found.append(replace(table, name="output"))
    vector_kind = _vector_kind(checkpoint, form, dtype)
    result = []
    for tensor in found:
        kind = vector_kind if is_vector(tensor) else dtype
        if form != "gguf" and (kind or tensor.kind) not in PLAIN:
            raise Unsupported(
                f"tensor {tensor.name!r} is {tensor.kind}, which {form} files do not hold; add --dtype "
                "bf16 (or f16, f32) to convert the rounded numbers"
            )
        if form == "gguf" and (kind or tensor.kind) in CODED:
            raise Unsupported(
                f"tensor {tensor.name!r} is {tensor.kind} ({checkpoint.quantization}), which GGUF has no "
                "type for; add --dtype bf16 (or f16, f32) to convert the rounded numbers"
            )
        result.append(_cast(tensor, kind or tensor.kind))
    return result


def _vector_kind(checkpoint: Checkpoint, form: Format, dtype: str | None) -> str | None:
    """The kind of norms; None keeps that of each."""
    if form == "gguf":
        return "F32"
    if dtype is not None or checkpoint.folder is not None:
        return dtype
    stated = checkpoint.metadata.get(_VECTOR_KIND)
    if stated in PLAIN:
        return str(stated)
    # A file of other software: back to the kind of the matrices where no value changes by it.
    vectors = [tensor for tensor in checkpoint.tensors.values() if is_vector(tensor)]
    kinds = {tensor.kind for tensor in checkpoint.tensors.values() if not is_vector(tensor)}
    if len(kinds) != 1 or not kinds <= {"F16", "BF16"}:
        return None
    (kind,) = kinds
    return kind if all(_survives(tensor, kind) for tensor in vectors) else None


def _survives(tensor: RawTensor, kind: str) -> bool:
    values = dequantize(tensor.data(), tensor.kind, tensor.shape)
    return np.array_equal(dequantize(quantize(values, kind), kind, tensor.shape), values)


def _cast(tensor: RawTensor, kind: str) -> RawTensor:
    """The tensor with its numbers rounded to `kind`, made when asked for; itself where they are that
    already.
    """
    if tensor.kind == kind:
        return tensor
    return replace(tensor, kind=kind, data=partial(_cast_data, tensor, kind))


def _cast_data(tensor: RawTensor, kind: str) -> NDArray[np.uint8]:
    shape = tensor.shape
    rows, width = prod(shape[:-1]), shape[-1]
    step = max(1, _CHUNK // width)
    data = tensor.data()
    out = np.empty(n_bytes(kind, shape), np.uint8)
    row_in, row_out = n_bytes(tensor.kind, (width,)), n_bytes(kind, (width,))
    for at in range(0, rows, step):
        end = min(rows, at + step)
        part = data[at * row_in : end * row_in]
        check_finite(tensor.name, tensor.kind, part)
        values_RX = dequantize(part, tensor.kind, (end - at, width))
        made = quantize(values_RX, kind)
        out[at * row_out : end * row_out] = made
        if not _is_finite(made, kind):
            raise BadValue(
                f"tensor {tensor.name!r} has values up to {np.abs(values_RX).max():.4g}, which {kind} cannot "
                "hold; choose another --dtype"
            )
    return out


def check_finite(name: str, kind: str, data: NDArray[np.uint8]) -> None:
    """Raise BadFile where the numbers of a tensor, or the scales of its blocks, are infinite or undefined."""
    if not _is_finite(data, kind):
        raise BadFile(
            f"tensor {name!r} holds values that are infinite or not a number (NaN); the checkpoint is "
            "damaged, get it again"
        )


# The bits of the exponent: all set in what is no finite number.
_EXPONENT = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}


def _is_finite(data: NDArray[np.uint8], kind: str) -> bool:
    if kind not in _EXPONENT:
        fields = [data.view(FORMATS[kind].layout)[f] for f in ("d", "m") if f in _fields(kind)]
        return all(bool(np.isfinite(scales).all()) for scales in fields)
    code, mask = _EXPONENT[kind]
    bits = data.view(code)
    number = bits.dtype.type(mask)
    chunks = (bits[at : at + _CHUNK] for at in range(0, bits.size, _CHUNK))
    return not any(bool(((chunk & number) == number).any()) for chunk in chunks)


def _fields(kind: str) -> Sequence[str]:
    return FORMATS[kind].layout.names or ()


def _quantized_target(checkpoint: Checkpoint, texts: Texts, name: str, quantization: Quantization) -> Target:
    config = checkpoint.config
    tensors = [quantization.of(tensor, config) for tensor in _tensors(checkpoint, "gguf", None)]
    number = FILE_TYPES[quantization.file_type].number
    other = [
        t.name
        for t in tensors
        if not t.name.startswith("vision")
        and t.kind != wanted_kind(config, quantization.file_type, t.name, t.shape)
    ]
    note = (
        (
            f"{len(other)} tensors, {other[0]!r} the first, have rows that are no whole blocks of their "
            "format and are stored in another, as llama.cpp does"
        )
        if other
        else ""
    )
    target = _gguf_target(checkpoint, tensors, texts, name, number)
    return replace(target, notes=[note] if note else [], is_costly=True)


def _gguf_target(
    checkpoint: Checkpoint, tensors: list[RawTensor], texts: Texts, name: str, file_type: int | None
) -> Target:
    """One file, and for a model that sees a second one of its image encoder, as llama.cpp has them."""
    config = checkpoint.config
    metadata = _gguf_entries(checkpoint, file_type, texts, name)
    sources = foreign.to_foreign("gguf", config, {tensor.name: tensor for tensor in tensors})
    factors = _factors(checkpoint)
    if factors is not None:
        sources.append(replace(factors, name=names.to_gguf(factors.name)))
    text = [Slice(s.name, s) for s in sources if not s.name.startswith(("v.", "mm."))]
    layouts = [gguf.layout(f"{name}.gguf", metadata, text)]
    if config.vision is not None:
        described = mmproj.vision_metadata(config.vision, config.dim)
        described |= {key: metadata[key] for key in (_VECTOR_KIND, "general.file_type") if key in metadata}
        described["general.name"] = Value.of(ValueType.STRING, name)
        seen = [Slice(s.name, s) for s in sources if s.name.startswith(("v.", "mm."))]
        layouts.append(gguf.layout(mmproj.name_for(name), described, seen))
    return Target("gguf", checkpoint, config, tensors, sources, layouts, {})


def _factors(checkpoint: Checkpoint) -> RawTensor | None:
    if "rope_factors" in checkpoint.tensors:
        return checkpoint.tensors["rope_factors"]
    factors = rope_factors(checkpoint.config)
    if factors is None:
        return None
    data = quantize(factors, "F32")
    return RawTensor("rope_factors", "F32", factors.shape, lambda: data)


def _gguf_entries(checkpoint: Checkpoint, file_type: int | None, texts: Texts, name: str) -> dict[str, Value]:
    """The metadata of a GGUF file; that of a GGUF source stays but for what is different now."""
    entries = {k: v for k, v in checkpoint.metadata.encoded.items() if not k.startswith("split.")}
    if not entries:
        entries = text_metadata(checkpoint.config) | {"general.name": Value.of(ValueType.STRING, name)}
        vectors = {t.kind for t in checkpoint.tensors.values() if is_vector(t)}
        if len(vectors) == 1:
            entries[_VECTOR_KIND] = Value.of(ValueType.STRING, vectors.pop())
        entries |= {key: encoded_value(value) for key, value in texts.metadata.items()}
        entries.setdefault("tokenizer.ggml.model", Value.of(ValueType.STRING, "no_vocab"))
    if file_type is not None:
        entries["general.file_type"] = Value.of(ValueType.UINT32, file_type)
    if file_type not in _FILE_TYPES.values():
        entries["general.quantization_version"] = Value.of(ValueType.UINT32, _QUANTIZATION_VERSION)
    return entries


def encoded_value(value: Any) -> Value:
    """Plain data in the types that llama.cpp's converter gives to tokenizers."""
    if isinstance(value, str):
        return Value.of(ValueType.STRING, value)
    if isinstance(value, bool):
        return Value.of(ValueType.BOOL, value)
    if isinstance(value, int):
        return Value.of(ValueType.UINT32, value)
    kinds: dict[type, ValueType] = {str: ValueType.STRING, int: ValueType.INT32, float: ValueType.FLOAT32}
    return Value.array(kinds[type(value[0])] if value else ValueType.STRING, value)
