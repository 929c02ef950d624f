"""The places that pictures take in a prompt.

Llama 3.2 Vision has one token for a picture, Llama 4 one for every piece of every tile. Which of the two a
vocabulary was made for is told by its tokens. No text of a message becomes one of them, so those that stand
in a prompt are the places of its pictures, in their order.
"""

from __future__ import annotations

from collections.abc import Sequence

from puna.core import BadInput, BadValue
from puna.text.tokenizer import Tokenizer

PATCHES = 144  # of a tile of Llama 4: 336 / 14 squared, a quarter of them after the pixel shuffle

Grid = tuple[int, int]  # tiles across and down

_IMAGE, _START, _END, _PATCH = "<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>"


def image_ids(tokenizer: Tokenizer, tiles_x: int, tiles_y: int, *, patches: int = PATCHES) -> list[int]:
    """Token ids of one picture for Llama 4, which was cut into `tiles_x` times `tiles_y` tiles.

    Tiles stand row by row, a separator between those of a row and one after each row; then the whole picture
    in one tile. A picture of one tile is only that last one. `patches` is the number of tokens of a tile.

    Source: ChatFormat._encode_image of llama4 in Meta's llama-models. Raises BadValue for fewer than one tile
    and for a vocabulary without these tokens.
    """
    if tiles_x < 1 or tiles_y < 1 or patches < 1:
        raise BadValue(
            f"a picture must have at least one tile and patch, got {tiles_x} by {tiles_y}, {patches}"
        )
    tile = [tokenizer.id(_PATCH)] * patches
    ids = [tokenizer.id(_START)]
    if tiles_x * tiles_y > 1:
        row = [*tile, *[tokenizer.id("<|tile_x_separator|>"), *tile] * (tiles_x - 1)]
        ids += [*row, tokenizer.id("<|tile_y_separator|>")] * tiles_y
    return [*ids, tokenizer.id(_IMAGE), *tile, tokenizer.id(_END)]


def expand_images(
    tokenizer: Tokenizer, ids: Sequence[int], grids: Sequence[Grid], *, patches: int = PATCHES
) -> list[int]:
    """A prompt in which one <|image|> stands for each picture, as templates write it, with the ids that the
    model takes in their places.

    `grids` are those of the pictures, in their order. Raises BadInput where there are not as many marks.
    """
    mark = tokenizer.id(_IMAGE) if tokenizer.has(_IMAGE) else None
    n_marks = sum(i == mark for i in ids)
    if n_marks != len(grids):
        raise BadInput(
            f"the model's chat template must have a place for each of the {len(grids)} images of the "
            f"messages, it has {n_marks}; put images into messages of the user"
        )
    if not tokenizer.has(_START):
        return list(ids)
    expanded: list[int] = []
    pending = iter(grids)
    for i in ids:
        expanded += image_ids(tokenizer, *next(pending), patches=patches) if i == mark else [i]
    return expanded


def image_positions(tokenizer: Tokenizer, ids: Sequence[int]) -> list[list[int]]:
    """Where the tokens of each picture stand in a prompt: all its patches, or its one mark."""
    if not tokenizer.has(_START):
        mark = tokenizer.id(_IMAGE) if tokenizer.has(_IMAGE) else None
        return [[at] for at, i in enumerate(ids) if i == mark]
    start, patch = tokenizer.id(_START), tokenizer.id(_PATCH)
    found: list[list[int]] = []
    for at, i in enumerate(ids):
        if i == start:
            found.append([])
        elif i == patch and found:
            found[-1].append(at)
    return found
