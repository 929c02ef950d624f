"""SentencePiece's tokenizer.model (Llama 1 and 2), read and written.

A protocol buffer (sentencepiece_model.proto of google/sentencepiece); the few fields that matter are read by
hand. What is made of them are the keys `tokenizer.*` of GGUF metadata, which vocabulary.py reads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

from puna.core import BadFile, Unsupported

# field numbers of ModelProto, SentencePiece, TrainerSpec and NormalizerSpec
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _BYTE_FALLBACK, _UNK_ID, _BOS_ID, _EOS_ID = 3, 35, 40, 41, 42
_NAME, _CHARSMAP, _DUMMY_PREFIX, _REMOVE_SPACES = 1, 2, 3, 4
_BPE = 2  # TrainerSpec.ModelType
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5  # kinds of fields on the wire

Field = int | bytes


def read_sentencepiece(raw: bytes) -> dict[str, Any]:
    """`tokenizer.*` metadata of a model file. Raises BadFile, and Unsupported for models that are no BPE."""
    try:
        fields = list(_fields(raw))
        pieces = [dict(_fields(_message(value))) for number, value in fields if number == _PIECES]
        trainer = _only(fields, _TRAINER)
        normalizer = _only(fields, _NORMALIZER)
        tokens = [_message(piece[_PIECE]).decode() for piece in pieces]
        scores = [struct.unpack("<f", _message(piece.get(_SCORE, bytes(4))))[0] for piece in pieces]
        types = [int(_number(piece.get(_TYPE, 1))) for piece in pieces]
    except (ValueError, KeyError, IndexError, struct.error):
        raise BadFile("it must be a SentencePiece model, and is not or is damaged; get it again") from None
    if not tokens:
        raise BadFile("it must be a SentencePiece model with pieces, it has none; get it again")
    _check(trainer, normalizer)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        **_roles(trainer, len(tokens)),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": bool(normalizer.get(_DUMMY_PREFIX, 1)),
    }


def _only(fields: list[tuple[int, Field]], number: int) -> dict[int, Field]:
    """A message that is in it once, or not at all."""
    merged: dict[int, Field] = {}
    for found, value in fields:
        if found == number:
            merged |= dict(_fields(_message(value)))
    return merged


def _check(trainer: Mapping[int, Field], normalizer: Mapping[int, Field]) -> None:
    if trainer.get(_MODEL_TYPE, 1) != _BPE:
        raise Unsupported("the SentencePiece model must be of type BPE, as Llama's is; this one is not")
    if normalizer.get(_CHARSMAP) or normalizer.get(_REMOVE_SPACES, 1):
        raise Unsupported(
            "the SentencePiece model changes texts before it encodes them (normalizer_spec), which Llama's "
            "does not and Puna cannot"
        )


def _roles(trainer: Mapping[int, Field], n_tokens: int) -> dict[str, int]:
    """The special ids; the proto's defaults are 0, 1 and 2, and -1 stands for none."""
    roles = {"unknown": (_UNK_ID, 0), "bos": (_BOS_ID, 1), "eos": (_EOS_ID, 2)}
    found = {role: trainer.get(number, default) for role, (number, default) in roles.items()}
    return {
        f"tokenizer.ggml.{role}_token_id": token_id
        for role, token_id in found.items()
        if isinstance(token_id, int) and token_id < n_tokens
    }


def _message(value: Field) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("not a message")
    return value


def _number(value: Field) -> int:
    if not isinstance(value, int):
        raise ValueError("not a number")
    return value


def _fields(raw: bytes) -> Iterator[tuple[int, Field]]:
    """Numbers and values of the fields of a message; ValueError where it is none."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(raw, at)
            yield key >> 3, value
            continue
        size = {_FIXED_64: 8, _FIXED_32: 4}.get(kind)
        if kind == _BYTES:
            size, at = _varint(raw, at)
        if size is None or size > len(raw) - at:
            raise ValueError("beyond the end")
        yield key >> 3, raw[at : at + size]
        at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(raw) or shift > 63:
            raise ValueError("no number")
        byte = raw[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def write_sentencepiece(metadata: Mapping[str, Any]) -> bytes:
    """The model file of `tokenizer.*` metadata whose tokenizer.ggml.model is "llama"."""
    key = "tokenizer.ggml."
    columns = (metadata[key + "tokens"], metadata[key + "scores"], metadata[key + "token_type"])
    parts = []
    for token, score, kind in zip(*columns, strict=True):
        piece = _bytes(_PIECE, token.encode()) + b"\x15" + struct.pack("<f", score)
        piece += _int(_TYPE, int(kind)) if kind != 1 else b""
        parts.append(_bytes(_PIECES, piece))
    has_bytes = 6 in {int(kind) for kind in columns[2]}
    trainer = _int(_MODEL_TYPE, _BPE) + _int(4, len(columns[0])) + _int(_BYTE_FALLBACK, int(has_bytes))
    for number, role in ((_UNK_ID, "unknown"), (_BOS_ID, "bos"), (_EOS_ID, "eos")):
        trainer += _int(number, metadata.get(f"{key}{role}_token_id", -1))
    prefix = bool(metadata.get(key + "add_space_prefix", True))
    normalizer = _bytes(_NAME, b"identity") + _int(_DUMMY_PREFIX, int(prefix)) + _int(_REMOVE_SPACES, 0)
    return b"".join(parts) + _bytes(_TRAINER, trainer) + _bytes(_NORMALIZER, normalizer)


def _int(number: int, value: int) -> bytes:
    return _pack_varint(number << 3 | _VARINT) + _pack_varint(value % (1 << 64))


def _bytes(number: int, value: bytes) -> bytes:
    return _pack_varint(number << 3 | _BYTES) + _pack_varint(len(value)) + value


def _pack_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
