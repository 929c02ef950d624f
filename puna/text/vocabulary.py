"""What a GGUF file says of its vocabulary (metadata keys `tokenizer.*`), checked and in the form we use."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile, Unsupported
from puna.text import bpe, pretokenizers, spm
from puna.text.strings import Strings


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
    infill_ids: Mapping[str, int]  # of the tokens around code to fill in, by the names of _INFILL


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

# Code Llama's tokens for filling in: the roles by which GGUF files name them, now and before; and how tokens
# are spelled by Meta, by files with spaces for its mark, and by Hugging Face.
_INFILL = {"PRE": ("fim_pre", "prefix"), "SUF": ("fim_suf", "suffix"), "MID": ("fim_mid", "middle")}
_INFILL_SPELLINGS = ("\u2581<{}>", " <{}>", "<{}>")

_KEY = "tokenizer."


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """Raises BadFile where the metadata is missing or contradicts itself, Unsupported for unknown kinds."""
    keys = _Keys(metadata)
    kind = keys.required("ggml.model", str)
    if kind == "gpt2":
        return _byte_level(keys)
    if kind == "llama":
        return _sentencepiece(keys)
    raise Unsupported(
        f"the file's vocabulary (tokenizer.ggml.model) is of kind {kind!r}, Puna reads 'gpt2' (byte-level "
        "BPE) and 'llama' (SentencePiece BPE)"
    )


def _byte_level(keys: _Keys) -> Vocabulary:
    scheme = pretokenizers.find(keys.optional("ggml.pre", str, "default"))
    tokens = _Tokens(keys, bpe.spelled)
    split = pretokenizers.splitter(scheme)
    encoder = bpe.ByteLevelBPE(tokens.ids, keys.strings("ggml.merges"), split, whole_words=scheme.whole_words)
    return tokens.vocabulary(encoder, add_bos=scheme.add_bos, space_prefix=False)


def _sentencepiece(keys: _Keys) -> Vocabulary:
    tokens = _Tokens(keys, spm.spelled)
    space_prefix = keys.optional("ggml.add_space_prefix", bool, True)
    byte_ids = [tokens.others[name] for b in range(256) if (name := f"<0x{b:02X}>") in tokens.others]
    encoder = spm.SentencePieceBPE(
        tokens.ids,
        keys.numbers("ggml.scores", len(tokens.spelled), np.float64),
        byte_ids if len(byte_ids) == 256 else [],
        tokens.role("unknown"),
        space_prefix=space_prefix,
    )
    return tokens.vocabulary(encoder, add_bos=True, space_prefix=space_prefix)


class _Keys:
    """Metadata by the last part of its keys. Raises BadFile for what is missing or of another type."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata

    def optional(self, name: str, kind: type, default: Any = None) -> Any:
        value = self._metadata.get(_KEY + name, default)
        # bool is a kind of int to Python, not to a file.
        if value is not None and type(value) is not kind:
            raise BadFile(
                f"metadata {_KEY + name!r} must be of type {kind.__name__}, found {value!r:.40}; "
                "damaged file?"
            )
        return value

    def required(self, name: str, kind: type) -> Any:
        self._check_there(name)
        return self.optional(name, kind)

    def strings(self, name: str) -> Strings:
        self._check_there(name)
        return Strings.in_metadata(self._metadata, _KEY + name)

    def numbers(self, name: str, n: int, dtype: type[np.generic]) -> NDArray[Any]:
        """An array that has to have one number for each of `n` tokens."""
        self._check_there(name)
        try:
            values = np.array(self._metadata[_KEY + name], dtype)
        except (ValueError, TypeError, OverflowError):
            raise BadFile(f"metadata {_KEY + name!r} must be an array of numbers; damaged file?") from None
        if values.shape != (n,):
            raise BadFile(
                f"metadata {_KEY + name!r} must have one entry for each of {n} tokens, it has {values.size}; "
                "damaged file?"
            )
        return values

    def _check_there(self, name: str) -> None:
        if _KEY + name not in self._metadata:
            raise BadFile(
                f"the file must carry its vocabulary, metadata {_KEY + name!r} is missing; convert the model "
                "again with its tokenizer"
            )


class _Tokens:
    """The tokens on their way to a Vocabulary, those that merging makes apart from the others."""

    def __init__(self, keys: _Keys, spell: Callable[[Strings], list[bytes]]) -> None:
        tokens = keys.strings("ggml.tokens")
        self._keys = keys
        self._types = keys.numbers("ggml.token_type", len(tokens), np.int32)
        self._types[(self._types < TokenType.NORMAL) | (self._types > TokenType.BYTE)] = TokenType.NORMAL
        # Others than those that merging makes, by name.
        self.others = {tokens[i]: i for i in np.flatnonzero(self._types != TokenType.NORMAL).tolist()}
        self.spelled = spell(tokens)
        for name, i in self.others.items():
            self.spelled[i] = _byte(name) if self._types[i] == TokenType.BYTE else name.encode()
        # Those that text becomes by merging. No control token is among them: this is what keeps text safe.
        normal = np.flatnonzero(self._types == TokenType.NORMAL).tolist()
        self.ids = dict(zip(map(self.spelled.__getitem__, normal), normal, strict=True))
        if len(self.ids) + len(self.others) != len(tokens):
            twice = Counter(zip(self.spelled, self._types.tolist(), strict=True)).most_common(1)[0][0][0]
            raise BadFile(
                f"every token must be in the vocabulary once, {twice!r} is there twice; damaged file?"
            )
        self._mark_control()

    def _mark_control(self) -> None:
        """Make control tokens of those that nothing else is called like."""
        for name in _END_NAMES:
            if (i := self.ids.pop(name.encode(), None)) is not None:
                self.others[name] = i
        for name, i in self.others.items():
            if _CONTROL_SHAPE.fullmatch(name):
                self._types[i] = TokenType.CONTROL

    def role(self, role: str) -> int | None:
        """A special id by its role; None where the file names none, or one outside the vocabulary."""
        found: int | None = self._keys.optional(f"ggml.{role}_token_id", int)
        return found if found is not None and 0 <= found < len(self.spelled) else None

    def vocabulary(self, encoder: Encoder, *, add_bos: bool, space_prefix: bool) -> Vocabulary:
        """With `add_bos` where the file does not say."""
        bos_id = self.role("bos")
        return Vocabulary(
            tokens=self.spelled,
            names=self._of_types(*_CONTROL, TokenType.USER_DEFINED),
            special_ids=frozenset(self._of_types(*_CONTROL).values()),
            encoder=encoder,
            bos_id=bos_id,
            eos_id=self.role("eos"),
            end_ids=self._end_ids(),
            add_bos=self._keys.optional("ggml.add_bos_token", bool, add_bos) and bos_id is not None,
            space_prefix=space_prefix,
            chat_template=self._keys.optional("chat_template", str),
            infill_ids=self._infill_ids(),
        )

    def _infill_ids(self) -> dict[str, int]:
        """By role, or else by name: files are not agreed on what kind of token these are."""
        found: dict[str, int] = {}
        for name, roles in _INFILL.items():
            spellings = [spelling.format(name) for spelling in _INFILL_SPELLINGS]
            ids = [
                *map(self.role, roles),
                *map(self.others.get, spellings),
                *(self.ids.get(spelling.replace("\u2581", " ").encode()) for spelling in spellings),
            ]
            if (i := next((i for i in ids if i is not None), None)) is not None:
                found[name] = i
        return found

    def _of_types(self, *types: TokenType) -> dict[str, int]:
        return {name: i for name, i in self.others.items() if self._types[i] in types}

    def _end_ids(self) -> frozenset[int]:
        control = self._of_types(*_CONTROL)
        named = [control[name] for name in (*_END_NAMES, *_END_NAMES_OF_CONTROL) if name in control]
        roles = [self.role(role) for role in ("eos", "eot", "eom")]
        return frozenset(named).union(i for i in roles if i is not None)


def _byte(name: str) -> bytes:
    """The byte of a token "<0x41>"."""
    try:
        return bytes([int(name[3:-1], 16)])
    except ValueError:
        raise BadFile(f"a byte token must be named like '<0x41>', found {name!r}; damaged file?") from None
