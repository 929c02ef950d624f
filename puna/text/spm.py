"""SentencePiece's byte-pair encoding with byte fallback (Kudo and Richardson 2018): Llama 1 and 2.

There are no words: merging works on the whole text, the piece of highest score first. What no piece covers
becomes its UTF-8 bytes, or the unknown token where the vocabulary has no bytes. Files spell a space as
U+2581; that character in a text is a space as well.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile
from puna.text.merging import NEVER, merge
from puna.text.strings import Strings

_SPACE = "\u2581"

# Stretches remembered with their ids: at most this many, none longer than this.
_CACHE_STRETCHES, _CACHE_LENGTH = 20_000, 32


def spelled(tokens: Strings) -> list[bytes]:
    """The bytes that tokens stand for."""
    raw, space = tokens.utf8.tobytes(), _SPACE.encode()
    return [raw[a:b].replace(space, b" ") for a, b in pairwise(tokens.starts.tolist())]


class SentencePieceBPE:
    """Encodes text that holds no special tokens.

    `ids` has the pieces that text may become, `scores` one for each id of the vocabulary; `byte_ids` the
    token of each byte, or nothing; `unknown_id` stands for what cannot be spelled; `space_prefix` puts a
    space before every text, as SentencePiece's add_dummy_prefix. Raises BadFile where there are neither bytes
    nor unknown.
    """

    def __init__(
        self,
        ids: Mapping[bytes, int],
        scores: NDArray[np.float64],
        byte_ids: Sequence[int],
        unknown_id: int | None,
        *,
        space_prefix: bool,
    ) -> None:
        if not byte_ids and unknown_id is None:
            raise BadFile("the vocabulary must have 256 byte tokens or an unknown token, it has neither")
        self._ids = ids
        self._byte_ids = byte_ids
        self._unknown_id = unknown_id
        self._prefix = " " if space_prefix else ""
        # Equal scores have equal ranks: the leftmost of them is merged first.
        ranks = np.unique(-scores, return_inverse=True)[1]
        self._ranks = array("I", ranks.astype(np.uint32).tobytes())
        self._stretches = _stretches(ids)
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        if not text:
            return []
        ids: list[int] = []
        cached = self._cache.get
        for stretch in self._stretches(self._prefix + text.replace(_SPACE, " ")):
            ids += cached(stretch) or self._encode_stretch(stretch)
        return ids if self._byte_ids else self._fuse_unknown(ids)

    def _encode_stretch(self, stretch: str) -> list[int]:
        ids: list[int] = []
        for piece in merge([character.encode() for character in stretch], self._rank):
            known = self._ids.get(piece)
            if known is not None:
                ids.append(known)
            elif self._byte_ids:
                ids += [self._byte_ids[byte] for byte in piece]
            elif self._unknown_id is not None:
                ids.append(self._unknown_id)
        if len(stretch) <= _CACHE_LENGTH:
            if len(self._cache) >= _CACHE_STRETCHES:
                self._cache.clear()
            self._cache[stretch] = ids
        return ids

    def _rank(self, left: bytes, right: bytes) -> int:
        token = self._ids.get(left + right)
        return NEVER if token is None else self._ranks[token]

    def _fuse_unknown(self, ids: list[int]) -> list[int]:
        """One unknown token for neighbouring ones, as SentencePiece does."""
        unknown = self._unknown_id
        return [i for at, i in enumerate(ids) if i != unknown or at == 0 or ids[at - 1] != unknown]


def _stretches(ids: Mapping[bytes, int]) -> Callable[[str], list[str]]:
    """Cuts text where no merge can reach across, so that stretches are short and can be remembered.

    Where no piece has a space after something else (true of Llama 1 and 2), that is before every run of
    spaces.
    """
    if any(map(re.compile(b"[^ ] ").search, ids)):
        return lambda text: [text]
    return re.compile(" +[^ ]*|[^ ]+").findall
