"""Byte-level byte-pair encoding (Radford et al. 2019): Llama 3, Llama 4, SmolLM and others.

The merge loop is ours rather than that of the `tokenizers` library because building theirs takes 0.7 s and
140 MB for Llama 3's 280,147 merges, where this takes 0.2 s and 30 MB. Text is cut into words by that library,
and its ids are an oracle of the tests.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile
from puna.text.merging import NEVER, merge
from puna.text.strings import Strings


def _alphabet() -> str:
    """The character that spells each byte: itself where Latin-1 prints it, else the next from U+0100."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return "".join(chr(b) if b in printable else chr(next(spare)) for b in range(256))


_OUTSIDE, _SPACE = 256, 257  # neither is a byte; spaces stand between the parts of a merge
_UNIT_OF = np.full(1 << 11, _OUTSIDE, np.uint16)  # by code points that UTF-8 has in at most two bytes
_UNIT_OF[[ord(character) for character in _alphabet()]] = range(256)
_UNIT_OF[ord(" ")] = _SPACE
_BYTES = [bytes([b]) for b in range(256)]
_SPELLING = dict(enumerate(_alphabet()))

# Words remembered with their ids: at most this many, none longer than this (natural ones rarely are).
_CACHE_WORDS, _CACHE_LENGTH = 20_000, 32


def spelled(tokens: Strings) -> list[bytes]:
    """The bytes that tokens spelled in the byte alphabet stand for; others are taken as plain text."""
    units, starts = _units(tokens)
    raw = units.astype(np.uint8).tobytes()
    result = [raw[a:b] for a, b in pairwise(starts.tolist())]
    names = np.searchsorted(starts, np.flatnonzero(units >= _OUTSIDE), "right") - 1  # rising
    for i in names[np.diff(names, prepend=-1) > 0].tolist():  # np.unique would load all of numpy.ma: 2 MB
        result[i] = tokens[i].encode()
    return result


def spell(token: bytes) -> str:
    """A token's bytes in the byte alphabet."""
    return token.decode("latin-1").translate(_SPELLING)


def _units(strings: Strings) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """What each character spells, and where each string starts in that [strings + 1]."""
    utf8 = strings.utf8
    codes = utf8.astype(np.uint16)
    two = np.flatnonzero((utf8 >= 0xC0) & (utf8 < 0xE0))
    codes[two] = (codes[two] & 0x1F) << 6 | codes[two + 1] & 0x3F
    codes[utf8 >= 0xE0] = 0  # of three or four bytes: outside, as U+0000 is
    begins = utf8 & 0xC0 != 0x80
    n_before = np.zeros(utf8.size + 1, np.int64)
    np.cumsum(begins, out=n_before[1:])
    return _UNIT_OF[codes[begins]], n_before[strings.starts]


class ByteLevelBPE:
    """Encodes text that holds no special tokens.

    `ids` has the tokens that text may become; `merges` are pairs "left right" by rank, spelled in the byte
    alphabet; `split` cuts text into words; with `whole_words` a word that is a token is never merged from
    parts. Raises BadFile for a merge that is no pair or makes no token.
    """

    def __init__(
        self,
        ids: Mapping[bytes, int],
        merges: Strings,
        split: Callable[[str], list[str]],
        *,
        whole_words: bool,
    ) -> None:
        self._ids = ids
        self._split = split
        self._whole_words = whole_words
        # SmolLM2 has no token for 21 bytes of control and unassigned characters. The tokenizer it was trained
        # with leaves them out before merging, and so do we.
        self._unspelled = bytes(b for b in range(256) if _BYTES[b] not in ids)
        self._cache: dict[str, list[int]] = {}
        self._first, self._left_lengths, self._ranks = _index(ids, merges)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        ids: list[int] = []
        cached = self._cache.get
        for word in self._split(text):
            ids += cached(word) or self._encode_word(word)
        return ids

    def _encode_word(self, word: str) -> list[int]:
        raw = word.encode()
        if self._whole_words and (whole := self._ids.get(raw)) is not None:
            ids = [whole]
        else:
            pieces = merge([_BYTES[b] for b in raw.translate(None, self._unspelled)], self._rank)
            ids = [self._ids[piece] for piece in pieces]
        if len(word) <= _CACHE_LENGTH:
            if len(self._cache) >= _CACHE_WORDS:
                self._cache.clear()
            self._cache[word] = ids
        return ids

    def _rank(self, left: bytes, right: bytes) -> int:
        token = self._ids.get(left + right)
        if token is None:
            return NEVER
        length = len(left)
        for i in range(self._first[token], self._first[token + 1]):
            if self._left_lengths[i] == length:
                return self._ranks[i]
        return NEVER


def _index(ids: Mapping[bytes, int], merges: Strings) -> tuple[array[int], array[int], array[int]]:
    """Merges grouped by the token they make: starts of groups [largest id + 2], lengths of left parts, ranks.

    A token and the length of its left part say all of a pair, in 6 bytes; a dictionary of pairs takes 130.
    """
    raw, starts, left_lengths = _pairs(merges)
    try:
        made = np.fromiter((ids[raw[a:b]] for a, b in pairwise(starts.tolist())), np.int64, len(merges))
    except KeyError as error:
        raise BadFile(
            f"every merge must make a token of the vocabulary, one makes {error.args[0]!r}; damaged file?"
        ) from None
    order = np.argsort(made, kind="stable")
    first = np.zeros(max(ids.values(), default=-1) + 2, np.uint32)
    np.cumsum(np.bincount(made, minlength=first.size - 1), out=first[1:])
    return (
        array("I", first.tobytes()),
        array("H", left_lengths[order].tobytes()),
        array("I", order.astype(np.uint32).tobytes()),
    )


def _pairs(merges: Strings) -> tuple[bytes, NDArray[np.int64], NDArray[np.uint16]]:
    """What merges make, joined; where each starts in it [merges + 1]; bytes in their left parts [merges]."""
    units, starts = _units(merges)
    is_space = units == _SPACE
    spaces = np.flatnonzero(is_space)
    if spaces.size != len(merges) or (spaces <= starts[:-1]).any() or (spaces >= starts[1:] - 1).any():
        raise BadFile("every merge must be two tokens with a space between them, one is not; damaged file?")
    raw = units[~is_space].astype(np.uint8).tobytes()
    return raw, starts - np.arange(starts.size), (spaces - starts[:-1]).astype(np.uint16)
