"""What a GGUF file says of its vocabulary (metadata keys `tokenizer.*`), checked and in the form we use."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile, Unsupported
from puna.text import bpe, pretokenizers, spm


class Encoder(Protocol):
    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Vocabulary:
    tokens: Sequence[bytes]  # what each id stands for; a control token for its name
    names: Mapping[str, int]  # control and user-defined tokens: those that text can name
    special_ids: frozenset[int]  # control tokens
    encoder: Encoder
    bos_id: int | None
    eos_id: int | None
    end_ids: frozenset[int]
    add_bos: bool
    space_prefix: bool  # the encoder puts a space before every text
    chat_template: str | None


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type` of the GGUF specification."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_CONTROL = (TokenType.CONTROL, TokenType.UNKNOWN)

# Tokens that end an answer, whatever the file calls its end: files that name the wrong one, or one of two,
# are common. Those of the second group can also be plain text, and count only as control tokens.
_END_NAMES = (
    "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|eot|>", "<|eom|>", "<|im_end|>", "<|endoftext|>",
    "<|end|>", "<|end_of_turn|>",
)  # fmt: skip
_END_NAMES_OF_CONTROL = ("</s>", "<end_of_turn>", "<EOT>", "▁<EOT>", "[EOS]")

# Files also forget to call such tokens control tokens.
_CONTROL_SHAPE = re.compile(r"<\|\w+\|>")

_KEY = "tokenizer.ggml."


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """Raises BadFile where the metadata is missing or contradicts itself, Unsupported for unknown kinds."""
    kind = _get(metadata, "model")
    if kind not in ("gpt2", "llama"):
        raise Unsupported(
            f"the file's vocabulary (tokenizer.ggml.model) is of kind {kind!r}, Puna reads 'gpt2' (byte-"
            "level BPE) and 'llama' (SentencePiece BPE)"
        )
    reader = _Reader(metadata, byte_level=kind == "gpt2")
    return reader.byte_level_vocabulary() if kind == "gpt2" else reader.sentencepiece_vocabulary()


def _get(metadata: Mapping[str, Any], name: str) -> Any:
    try:
        return metadata[_KEY + name]
    except KeyError:
        raise BadFile(
            f"the file must carry its vocabulary, metadata {_KEY + name!r} is missing; convert the model "
            "again with its tokenizer"
        ) from None


class _Reader:
    """Metadata on its way to a Vocabulary."""

    def __init__(self, metadata: Mapping[str, Any], *, byte_level: bool) -> None:
        self.metadata = metadata
        tokens: list[str] = _get(metadata, "tokens")
        self.types = self._types(len(tokens))
        # Tokens that merging does not make, by name.
        self.others = {tokens[i]: i for i in np.flatnonzero(self.types != TokenType.NORMAL).tolist()}
        self.tokens = self._spell(tokens, byte_level)
        # Tokens that text becomes by merging. No control token is among them: this is what keeps text safe.
        normal = np.flatnonzero(self.types == TokenType.NORMAL).tolist()
        self.ids = dict(zip(map(self.tokens.__getitem__, normal), normal, strict=True))
        if len(self.ids) + len(self.others) != len(tokens):
            twice = Counter(zip(self.tokens, self.types.tolist(), strict=True)).most_common(1)[0][0][0]
            raise BadFile(f"every token must be in the vocabulary once, {twice!r} is there twice")
        self._mark_control()

    def byte_level_vocabulary(self) -> Vocabulary:
        scheme = pretokenizers.find(self.metadata.get(_KEY + "pre", "default"))
        split = pretokenizers.splitter(scheme)
        merges = _get(self.metadata, "merges")
        encoder = bpe.ByteLevelBPE(self.ids, merges, split, whole_words=scheme.whole_words)
        return self._vocabulary(encoder, add_bos=scheme.add_bos, space_prefix=False)

    def sentencepiece_vocabulary(self) -> Vocabulary:
        byte_ids = [self.others[name] for b in range(256) if (name := f"<0x{b:02X}>") in self.others]
        space_prefix = bool(self.metadata.get(_KEY + "add_space_prefix", True))
        encoder = spm.SentencePieceBPE(
            self.ids,
            self._array("scores", len(self.tokens), np.float32),
            byte_ids if len(byte_ids) == 256 else [],
            self._token_id("unknown"),
            space_prefix=space_prefix,
        )
        return self._vocabulary(encoder, add_bos=True, space_prefix=space_prefix)

    def _vocabulary(self, encoder: Encoder, *, add_bos: bool, space_prefix: bool) -> Vocabulary:
        bos_id = self._token_id("bos")
        named = (*_CONTROL, TokenType.USER_DEFINED)
        return Vocabulary(
            tokens=self.tokens,
            names={name: i for name, i in self.others.items() if self.types[i] in named},
            special_ids=frozenset(i for i in self.others.values() if self.types[i] in _CONTROL),
            encoder=encoder,
            bos_id=bos_id,
            eos_id=self._token_id("eos"),
            end_ids=self._end_ids(),
            add_bos=bool(self.metadata.get(_KEY + "add_bos_token", add_bos)) and bos_id is not None,
            space_prefix=space_prefix,
            chat_template=self.metadata.get("tokenizer.chat_template"),
        )

    def _types(self, n: int) -> NDArray[np.int32]:
        types = self._array("token_type", n, np.int32)
        types[(types < TokenType.NORMAL) | (types > TokenType.BYTE)] = TokenType.NORMAL
        return types

    def _array(self, name: str, n: int, dtype: type[np.generic]) -> NDArray[Any]:
        values = np.array(_get(self.metadata, name), dtype)
        if values.shape != (n,):
            raise BadFile(
                f"metadata {_KEY + name!r} must have one entry for each of {n} tokens, it has {values.size}; "
                "damaged file?"
            )
        return values

    def _spell(self, tokens: Sequence[str], byte_level: bool) -> list[bytes]:
        texts = list(tokens)
        for i in self.others.values():
            texts[i] = ""
        spelled = bpe.spelled(texts) if byte_level else spm.spelled(texts)
        for name, i in self.others.items():
            spelled[i] = _byte(name) if self.types[i] == TokenType.BYTE else name.encode()
        return spelled

    def _mark_control(self) -> None:
        """Make control tokens of those that nothing else can be called like."""
        for name in _END_NAMES:
            if (i := self.ids.pop(name.encode(), None)) is not None:
                self.others[name] = i
        for name, i in self.others.items():
            if _CONTROL_SHAPE.fullmatch(name):
                self.types[i] = TokenType.CONTROL

    def _end_ids(self) -> frozenset[int]:
        named = [self.others[name] for name in (*_END_NAMES, *_END_NAMES_OF_CONTROL) if name in self.others]
        roles = [self._token_id(role) for role in ("eos", "eot", "eom")]
        return frozenset(
            [*(i for i in named if self.types[i] in _CONTROL), *(i for i in roles if i is not None)]
        )

    def _token_id(self, role: str) -> int | None:
        """A special id by its role; None where the file names none, or one outside the vocabulary."""
        found = self.metadata.get(f"{_KEY}{role}_token_id")
        return int(found) if found is not None and 0 <= found < len(self.tokens) else None


def _byte(name: str) -> bytes:
    """The byte of a token "<0x41>"."""
    try:
        return bytes([int(name[3:-1], 16)])
    except ValueError:
        raise BadFile(f"a byte token must be named like '<0x41>', found {name!r}; damaged file?") from None
