"""Meta's tokenizer.model of Llama 3: lines of a token in base64 and its rank, as tiktoken reads them.

The file has no special tokens: Meta's code appends 256 of them (llama-models, llama3/tokenizer.py). What is
made of it are the keys `tokenizer.*` of GGUF metadata, which vocabulary.py reads.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from puna.core import BadFile, Unsupported
from puna.text import bpe

_NORMAL, _CONTROL = 1, 3  # of tokenizer.ggml.token_type
_MAX_LENGTH = 1 << 12  # bytes of a token; the longest of Llama 3 has 128
_N_LLAMA_3 = 128_000

_SPECIAL = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>",
    "<|eot_id|>", "<|python_tag|>", "<|image|>",
]  # fmt: skip
_SPECIAL += [f"<|reserved_special_token_{i}|>" for i in range(2, 2 + 256 - len(_SPECIAL))]


def is_tiktoken(raw: bytes) -> bool:
    """Whether a tokenizer.model is of this kind; the other is SentencePiece's."""
    first = raw[:200].split(b"\n")[0].split(b" ")
    return len(first) == 2 and first[1].strip().isdigit()


def read_tiktoken(raw: bytes) -> dict[str, Any]:
    """`tokenizer.*` metadata of Llama 3's file. Raises BadFile, and Unsupported for one of another size."""
    ranks = _ranks(raw)
    if len(ranks) != _N_LLAMA_3:
        raise Unsupported(
            f"a tokenizer.model in tiktoken's form must have the {_N_LLAMA_3:,} tokens of Llama 3, found "
            f"{len(ranks):,}; give the folder a tokenizer.json instead"
        )
    tokens = [bpe.spell(token) for token in ranks]
    n = len(tokens)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens + _SPECIAL,
        "tokenizer.ggml.token_type": [_NORMAL] * n + [_CONTROL] * len(_SPECIAL),
        "tokenizer.ggml.merges": merges_of(ranks),
        "tokenizer.ggml.bos_token_id": n,
        "tokenizer.ggml.eos_token_id": n + 1,
        "tokenizer.ggml.eot_token_id": n + _SPECIAL.index("<|eot_id|>"),
        "tokenizer.ggml.eom_token_id": n + _SPECIAL.index("<|eom_id|>"),
        "tokenizer.ggml.add_bos_token": True,
    }


def _ranks(raw: bytes) -> list[bytes]:
    """The tokens in the order of their ranks, which are 0, 1, 2 and so on."""
    tokens: list[bytes] = []
    for i, line in enumerate(raw.split(b"\n")):
        if not line.strip():
            continue
        spelled, _, rank = line.strip().partition(b" ")
        try:
            token = base64.b64decode(spelled, validate=True)
            good = int(rank) == len(tokens) and 0 < len(token) <= _MAX_LENGTH
        except (binascii.Error, ValueError):
            good = False
        if not good:
            raise BadFile(
                f"line {i + 1} must be a token in base64 and the rank {len(tokens)}, found {line[:40]!r}; "
                "get the file again"
            )
        tokens.append(token)
    if len(set(tokens)) != len(tokens):
        raise BadFile("every token must be in it once, one is there twice; get the file again")
    return tokens


def merges_of(ranks: Sequence[bytes]) -> list[str]:
    """Every way to make a token of two others, by the rank of what is made: tiktoken's rule as merges."""
    rank_of = {token: rank for rank, token in enumerate(ranks)}
    spelled = [bpe.spell(token) for token in ranks]
    find = rank_of.get
    merges: list[str] = []
    for token in ranks:
        pairs = [(find(token[:i]), find(token[i:])) for i in range(1, len(token))]
        known = sorted((left, right) for left, right in pairs if left is not None and right is not None)
        merges += [f"{spelled[left]} {spelled[right]}" for left, right in known]
    return merges


def can_write_tiktoken(metadata: Mapping[str, Any]) -> bool:
    """Whether Meta's code would read the vocabulary back: Llama 3's tokens, then 256 special ones."""
    key = "tokenizer.ggml."
    tokens = metadata[key + "tokens"]
    return (
        metadata.get(key + "model") == "gpt2"
        and metadata.get(key + "pre") in ("llama-bpe", "llama3", "llama-v3")
        and len(tokens) == _N_LLAMA_3 + len(_SPECIAL)
        and tokens[_N_LLAMA_3:][:2] == _SPECIAL[:2]
        and all(kind == _CONTROL for kind in metadata[key + "token_type"][_N_LLAMA_3:])
    )


def write_tiktoken(metadata: Mapping[str, Any]) -> bytes:
    """The file of metadata that can_write_tiktoken is true of; names of reserved tokens are not part of
    it.
    """
    from puna.text.strings import Strings

    tokens = bpe.spelled(Strings.of(metadata["tokenizer.ggml.tokens"][:_N_LLAMA_3]))
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)]
    return b"".join(lines)
