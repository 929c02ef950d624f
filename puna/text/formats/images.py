"""The places that pictures take in a prompt."""

from __future__ import annotations

from puna.core import BadValue
from puna.text.tokenizer import Tokenizer

PATCHES = 144  # of a tile of Llama 4: 336 / 14 squared, a quarter of them after the pixel shuffle


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
    tile = [tokenizer.id("<|patch|>")] * patches
    ids = [tokenizer.id("<|image_start|>")]
    if tiles_x * tiles_y > 1:
        row = [*tile, *[tokenizer.id("<|tile_x_separator|>"), *tile] * (tiles_x - 1)]
        ids += [*row, tokenizer.id("<|tile_y_separator|>")] * tiles_y
    return [*ids, tokenizer.id("<|image|>"), *tile, tokenizer.id("<|image_end|>")]
