"""What the tokens of one step have to do with images, as the ops of any executor get it. Plain data.

Shapes: T tokens of the step, N some of them, I positions of an encoded image, D model width, K key/value
heads, C head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Fused:
    """Tokens whose embeddings are parts of an image."""

    rows_N: NDArray[np.int64]  # of the step
    image_ID: Any  # embeddings of the whole image
    parts_N: NDArray[np.int64]  # which of them


@dataclass(frozen=True, slots=True)
class Seen:
    """Neighbouring tokens of one sequence that look at the same images."""

    rows: slice  # of the step
    images: Sequence[Sequence[tuple[Any, Any]]]  # of each image, keys and values [I, K*C] for every layer


@dataclass(frozen=True, slots=True)
class StepImages:
    fused: tuple[Fused, ...] = ()
    seen: tuple[Seen, ...] = ()


NO_IMAGES = StepImages()
