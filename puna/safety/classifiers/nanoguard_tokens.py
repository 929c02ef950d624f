"""NanoGuard's tokenizer.pkl, read without running what a pickle can run.

It is a pickled tiktoken.Encoding: an expression, ranks of tokens, special tokens. A pickle may name any
function; here that one class is replaced by an empty one of ours, and any other name is refused.
"""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from puna.core import BadFile
from puna.text.bpe import spell
from puna.text.tiktoken_file import merges_of

BEGIN, PAD = "<|reserved_0|>", "<|reserved_1|>"
_MOST_BYTES = 16 << 20
_UNREADABLE = (pickle.UnpicklingError, EOFError, struct.error)


class _Encoding:
    """Takes the attributes of the pickled object and does nothing with them."""


class _Reader(pickle._Unpickler):  # the one in Python: the other sizes its tables by numbers of the file
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("tiktoken.core", "Encoding"):
            return _Encoding
        raise BadFile(f"tokenizer.pkl must hold a tiktoken Encoding only, found {module}.{name}: not read")


def read_tokens(path: Path) -> tuple[Tokenizer, dict[str, int]]:
    """The tokenizer, without special tokens, and those by their names. Raises BadFile."""
    if path.stat().st_size > _MOST_BYTES:
        raise BadFile(f"{path} must be NanoGuard's tokenizer of some 100 kB, found {path.stat().st_size:,} B")
    try:
        data = vars(_Reader(io.BytesIO(path.read_bytes())).load())
        ranks = sorted(data["mergeable_ranks"].items(), key=lambda item: item[1])
        special = {str(name): int(i) for name, i in data["special_tokens"].items()}
        if [rank for _, rank in ranks] != list(range(len(ranks))) or not {BEGIN, PAD} <= special.keys():
            raise ValueError("ranks with gaps, or no tokens for begin and padding")
        tokens = [bytes(token) for token, _ in ranks]
        vocabulary = {spell(token): i for i, token in enumerate(tokens)}
        merges = [(left, right) for left, _, right in (m.partition(" ") for m in merges_of(tokens))]
        tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=True))
        words = Split(Regex(data["pat_str"]), "isolated")
    except (*_UNREADABLE, LookupError, AttributeError, TypeError, ValueError) as error:
        raise BadFile(f"{path} must be NanoGuard's pickled tokenizer, found: {error!r:.200}") from None
    tokenizer.pre_tokenizer = Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])
    return tokenizer, special
