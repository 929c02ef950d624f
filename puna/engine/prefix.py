"""Prefix cache: which full blocks hold the keys and values of which beginnings of sequences.

A block's contents depend on the adapter and on every token and image before it, so an entry is keyed by the
entry of the block before it, by the exact tokens of its own block, and by the images with positions there.
Entries have serial numbers that are never used again: two chains are equal only if their tokens and images
are, and no hash collision can hand a caller somebody else's context. The first block of a chain is keyed by
the adapter, and by the salt of its request, so that nobody learns from the time of an answer what others have
asked.

Knows no reference counts and no eviction order: blocks.py does.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

from puna.core import Image, PlacedImage

ROOT = 0  # serial of the empty prefix


Parent = int | tuple[int, str]  # serial of an entry; of the empty prefix what root_of() says


def root_of(adapter: int, salt: str = "") -> Parent:
    """The empty prefix under an adapter (0: none) of all requests with that salt. Without one it is a serial
    below all entries', which count upwards.
    """
    return (adapter, salt) if salt else ROOT - adapter


Images = Sequence[PlacedImage]  # in the order of their positions


def salted(images: Images, salt: str) -> Images:
    """The images under digests of that salt's own: executors keep what they encode by digest, and nobody is
    to learn from the time of an answer which pictures others have shown.
    """
    if not (salt and images):
        return images
    key = blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=32).digest()

    def own(image: Image) -> Image:
        return replace(image, digest=blake2b(image.digest, key=key, digest_size=32).digest())

    return [PlacedImage(own(placed.image), placed.positions) for placed in images]


Mark = tuple[bytes, int, tuple[int, ...]]  # digest, how many positions lie before the block, those in it
Key = tuple[Parent, bytes, tuple[Mark, ...]]  # the parent, tokens, images


def marks(images: Images, start: int, end: int) -> tuple[Mark, ...]:
    """The images with positions in start..end-1, and where: relative to `start`, and to the image."""
    found: list[Mark] = []
    for placed in images:
        first, last = bisect_left(placed.positions, start), bisect_left(placed.positions, end)
        if first < last:
            here = tuple(p - start for p in placed.positions[first:last])
            found.append((placed.image.digest, first, here))
    return tuple(found)


class PrefixCache:
    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._block_of: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}  # block -> its key
        self._serial_of: dict[int, int] = {}  # block -> serial
        self._n_serials = ROOT

    def match(self, tokens: array[int], limit: int, images: Images = (), root: Parent = ROOT) -> list[int]:
        """The cached blocks that hold the longest beginning of tokens[:limit] under `root`, in order."""
        size, parent = self._block_size, root
        blocks: list[int] = []
        for end in range(size, limit + 1, size):
            seen = marks(images, end - size, end)
            block = self._block_of.get((parent, tokens[end - size : end].tobytes(), seen))
            if block is None:
                break
            blocks.append(block)
            parent = self._serial_of[block]
        return blocks

    def insert(self, parent: Parent, tokens: array[int], block: int, images: tuple[Mark, ...] = ()) -> int:
        """Offer `block`, which follows entry `parent` and is filled with `tokens` and `images`; returns the
        block that is kept: an older one where the same contents were cached already."""
        key = (parent, tokens.tobytes(), images)
        known = self._block_of.setdefault(key, block)
        if known == block:
            self._n_serials += 1
            self._key_of[block] = key
            self._serial_of[block] = self._n_serials
        return known

    def serial(self, block: int) -> int:
        """The entry of a cached block, to insert its successor under."""
        return self._serial_of[block]

    def holds(self, block: int) -> bool:
        return block in self._key_of

    def forget(self, block: int) -> None:
        """The block is about to be overwritten."""
        del self._block_of[self._key_of.pop(block)], self._serial_of[block]


class LocalPrefixes:
    """Which blocks of layers with chunked attention go with which entries of a PrefixCache.

    An entry may have lost its local block, or never had one: then it is of use only where nothing sees it.
    """

    def __init__(self) -> None:
        self._block_of: dict[int, int] = {}  # serial of the entry -> block
        self._serial_of: dict[int, int] = {}

    def block(self, serial: int) -> int | None:
        return self._block_of.get(serial)

    def insert(self, serial: int, block: int) -> int:
        """Offer the local block of an entry; returns the one that is kept."""
        known = self._block_of.setdefault(serial, block)
        if known == block:
            self._serial_of[block] = serial
        return known

    def holds(self, block: int) -> bool:
        return block in self._serial_of

    def forget(self, block: int) -> None:
        """The block is about to be overwritten."""
        del self._block_of[self._serial_of.pop(block)]
