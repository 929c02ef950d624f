"""Metadata of vocabularies to test with, as a GGUF file would carry it."""

from __future__ import annotations

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from puna.text.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent.parent / "golden"
KEY = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
Metadata = dict[str, Any]


@cache
def smollm2_data() -> dict[str, Any]:
    data = json.loads(lzma.decompress((GOLDEN / "smollm2_vocab.json.xz").read_bytes()))
    data["tokens"] = [*data["special"], *data["bytes"], *(merge.replace(" ", "") for merge in data["merges"])]
    return data


def smollm2(pre: str = "smollm", extra: dict[str, int] | None = None, **changes: Any) -> Metadata:
    """SmolLM2's vocabulary; `extra` adds tokens (name to type), `changes` keys (None takes one out)."""
    data, extra = smollm2_data(), extra or {}
    tokens = [*data["tokens"], *extra]
    n_special = len(data["special"])
    types = [CONTROL] * n_special + [NORMAL] * (len(tokens) - n_special - len(extra)) + [*extra.values()]
    metadata: Metadata = {
        "model": "gpt2", "pre": pre, "tokens": tokens, "token_type": np.array(types, np.int32),
        "merges": data["merges"], "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
        "add_bos_token": False, "add_space_prefix": False,
    }  # fmt: skip
    return changed(metadata, {"chat_template": data["chat_template"], **changes})


def small_sentencepiece(*, byte_fallback: bool = True, **changes: Any) -> Metadata:
    """A small vocabulary of Llama 2's kind."""
    pieces = json.loads((GOLDEN / "spm_small.json").read_text(encoding="utf-8"))["pieces"]
    return sentencepiece([piece for piece in pieces if piece[2] != BYTE or byte_fallback], **changes)


def sentencepiece(pieces: list[tuple[str, float, int]], **changes: Any) -> Metadata:
    tokens, scores, types = zip(*pieces, strict=True)
    metadata = {
        "model": "llama", "tokens": list(tokens), "scores": np.array(scores, np.float32),
        "token_type": np.array(types, np.int32), "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
    }  # fmt: skip
    return changed(metadata, changes)


def changed(metadata: Metadata, changes: Metadata) -> Metadata:
    """With full keys, and `changes` made: None takes a key out."""
    full = {KEY + name: value for name, value in {**metadata, **changes}.items() if value is not None}
    template = full.pop(KEY + "chat_template", None)
    return full if template is None else full | {"tokenizer.chat_template": template}


@cache
def smollm2_tokenizer(pre: str = "smollm") -> Tokenizer:
    return Tokenizer.from_gguf(smollm2(pre))


@cache
def llama2_tokenizer() -> Tokenizer:
    return Tokenizer.from_gguf(small_sentencepiece())


def from_ranks(ranks: list[bytes], pre: str, special: dict[str, int]) -> Metadata:
    """A tiktoken vocabulary as converters to GGUF write it: every way to make a token of two is a merge.

    `special` has ids by name, which follow those of `ranks`.
    """
    rank_of = {token: rank for rank, token in enumerate(ranks)}
    merges = []
    for token in ranks:
        halves = ((rank_of.get(token[:i]), rank_of.get(token[i:])) for i in range(1, len(token)))
        merges += sorted((left, right) for left, right in halves if left is not None and right is not None)
    alphabet = byte_alphabet()
    spelled = ["".join(alphabet[b] for b in token) for token in ranks]
    names = sorted(special, key=special.__getitem__)
    assert [special[name] for name in names] == list(range(len(ranks), len(ranks) + len(names)))
    types = [NORMAL] * len(ranks) + [CONTROL] * len(names)
    metadata = {
        "model": "gpt2", "pre": pre, "tokens": spelled + names, "token_type": np.array(types, np.int32),
        "merges": [f"{spelled[left]} {spelled[right]}" for left, right in merges],
    }  # fmt: skip
    return changed(metadata, {})


def byte_alphabet() -> list[str]:
    """GPT-2's character for each byte."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [b for b in range(256) if b not in plain]
    return [chr(b) if b in plain else chr(256 + others.index(b)) for b in range(256)]


def smollm2_ranks() -> list[bytes]:
    """SmolLM2's tokens as tiktoken ranks; bytes that it lacks follow at the end."""
    byte_of = {character: b for b, character in enumerate(byte_alphabet())}
    tokens = smollm2_data()["tokens"][len(smollm2_data()["special"]) :]
    raw = [bytes(byte_of[character] for character in token) for token in tokens]
    return raw + sorted({bytes([b]) for b in range(256)}.difference(raw))
