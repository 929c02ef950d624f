"""Encoded images of an executor, and what the tokens of a step have to do with them.

An image is encoded when a step first needs it, and kept by its digest: of Llama 4 the embeddings, of Llama
3.2 Vision the keys and values of every cross-attention layer. The least recently used go when there are too
many bytes; those of the step itself stay, so that no running sequence waits for its image twice.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from puna.core import Batch, Chunk, Image
from puna.model.block import Weights
from puna.model.config import ModelConfig
from puna.ops.images import NO_IMAGES, Fused, Seen, StepImages

IMAGE_BYTES = 1 << 30  # five pictures of four tiles for Llama 3.2 11B Vision in 16 bits
MAX_SEEN = 8  # images that running sequences look at together, which cannot be dropped meanwhile


@dataclass(frozen=True, slots=True)
class Encoded:
    image_ID: Any  # embeddings (Llama 4); else None
    layers: Any  # for cross-attention: keys and values [I, K*C] of each layer, or an executor's own form
    n_bytes: int


# (ops, configuration, cross-attention layers, encoded image) -> Encoded.layers and its bytes
Keep = Callable[[Any, ModelConfig, Sequence[Any], Any], tuple[Any, int]]


def _pairs(ops: Any, cfg: ModelConfig, layers: Sequence[Any], y_ID: Any) -> tuple[Any, int]:
    from puna.model.vision import cross_keys

    pairs = cross_keys(ops, cfg, layers, y_ID)
    return pairs, sum(part.nbytes for pair in pairs for part in pair)


def max_images(cfg: ModelConfig) -> int | None:
    """See core.Executor. Embeddings have done their part once they are read; keys and values are looked at by
    every token.
    """
    return MAX_SEEN if cfg.cross_attention else None


class ImageStore:
    """`encode_image` computes an image by one executor's ops; see `encode`, which helps it."""

    def __init__(self, cfg: ModelConfig, encode_image: Callable[[Image], Encoded], max_bytes: int) -> None:
        self._cfg = cfg
        self._encode_image = encode_image
        self._max_bytes = max_bytes
        self._encoded: OrderedDict[bytes, Encoded] = OrderedDict()  # least recently used first

    @property
    def n_bytes(self) -> int:
        return sum(image.n_bytes for image in self._encoded.values())

    def n_positions(self, image: Image) -> int:
        """See core.Executor.n_image_positions."""
        from puna.model.vision import n_positions

        return n_positions(self._cfg, image)

    def encode(
        self, image: Image, w: Weights, ops_of: Callable[[Any], Any], read: Any, keep: Keep | None = None
    ) -> Encoded:
        """The image by the ops that `ops_of` makes for its tiles.

        `read` turns weights into numbers; `keep` brings it before cross-attention in another form than pairs
        of keys and values.
        """
        from puna.model.vision import encode, tiles

        vision = self._cfg.vision
        assert vision is not None
        ops = ops_of(tiles(vision, w.vision, image, read))
        y_ID = encode(ops, vision, w.vision)
        if self._cfg.cross_attention:
            return Encoded(None, *(keep or _pairs)(ops, self._cfg, w.cross_layers, y_ID))
        return Encoded(y_ID, (), y_ID.nbytes)

    def of(self, batch: Batch) -> StepImages:
        """What the tokens of the batch have to do with images, each of which is encoded by now."""
        if not any(chunk.images for chunk in batch.chunks):
            self._shrink(set())
            return NO_IMAGES
        fused: list[Fused] = []
        seen: list[Seen] = []
        used: set[bytes] = set()
        row = 0
        for chunk in batch.chunks:
            if self._cfg.cross_attention:
                seen += self._seen(chunk, row, used)
            else:
                fused += self._fused(chunk, row, used)
            row += len(chunk.tokens)
        self._shrink(used)
        return StepImages(tuple(fused), tuple(seen))

    def _get(self, image: Image, used: set[bytes]) -> Encoded:
        used.add(image.digest)
        if image.digest not in self._encoded:
            self._shrink(used)  # first, so that both need not fit
            self._encoded[image.digest] = self._encode_image(image)
        self._encoded.move_to_end(image.digest)
        return self._encoded[image.digest]

    def _shrink(self, used: set[bytes]) -> None:
        n_bytes = self.n_bytes
        for digest in [digest for digest in self._encoded if digest not in used]:
            if n_bytes <= self._max_bytes:
                return
            n_bytes -= self._encoded.pop(digest).n_bytes

    def _fused(self, chunk: Chunk, row: int, used: set[bytes]) -> list[Fused]:
        """The images with positions in the chunk, wherever it cuts them."""
        found: list[Fused] = []
        for placed in chunk.images:
            first = bisect_left(placed.positions, chunk.start)
            last = bisect_left(placed.positions, chunk.start + len(chunk.tokens))
            if first < last:
                rows_N = np.asarray(placed.positions[first:last], np.int64) - chunk.start + row
                encoded = self._get(placed.image, used)
                found.append(Fused(rows_N, encoded.image_ID, np.arange(first, last)))
        return found

    def _seen(self, chunk: Chunk, row: int, used: set[bytes]) -> list[Seen]:
        """The chunk cut where the images that a token looks at change."""
        if not chunk.images:
            return []
        from puna.model.vision import seen_from

        end = chunk.start + len(chunk.tokens)
        ranges = seen_from([placed.positions[0] for placed in chunk.images])
        spans = [(first, end if last is None else last) for first, last in ranges]
        cuts = {chunk.start, end}.union(cut for span in spans for cut in span if chunk.start < cut < end)
        edges = sorted(cuts)
        found: list[Seen] = []
        for first, last in pairwise(edges):
            images = [
                self._get(placed.image, used).layers
                for placed, (begin, behind) in zip(chunk.images, spans, strict=True)
                if begin <= first < behind
            ]
            if images:
                found.append(Seen(slice(row + first - chunk.start, row + last - chunk.start), images))
        return found
