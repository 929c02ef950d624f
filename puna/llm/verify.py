"""Whether what was written predicts like what it was made of: both run over the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from puna.core import WorkFailed
from puna.weights.load import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from puna.runtime.streamed import Agreement

_TEXT = (
    "The old harbour lies open to the north, and in winter the wind comes straight from the ice. Fishermen "
    "mend their nets in the sheds, children count the gulls, and once a week a boat brings letters, flour "
    "and news. In 1897 the lighthouse was rebuilt after a storm; its lamp can be seen for 23 miles. "
    "def f(x): return x + 1"
)
_ROUNDING = 1e-4  # of log-probabilities, where rows are multiplied in other groups
_N_IDS = 96  # of a checkpoint without a tokenizer


def compare(source: Checkpoint, written: Path, *, same: bool = False) -> Agreement:
    """Forward passes of both in float32, with decoded matrices.

    Raises WorkFailed where the result gives numbers that are not finite, or where it should be the `same`
    model and predicts differently.
    """
    from puna.runtime.streamed import agreement

    with open_checkpoint(written) as result:
        found = agreement(source, result, _ids(source))
    if found.max_difference == float("inf"):
        raise WorkFailed(
            f"{written} gives predictions that are not finite; the source may hold extreme values"
        )
    if same and found.max_difference > _ROUNDING:
        raise WorkFailed(
            f"{written} predicts otherwise than its source, by up to {found.max_difference:.3g} in "
            "log-probabilities; please report it"
        )
    return found


def _ids(checkpoint: Checkpoint) -> list[int]:
    from puna.core import BadInput
    from puna.llm.load import read_tokenizer

    try:
        return read_tokenizer(checkpoint).encode(_TEXT)[: checkpoint.config.context_length]
    except BadInput:  # it has no tokenizer that we read, and runs on ids alone
        n_vocab = checkpoint.config.vocab_size
        return [(i * 7919 + 1) % n_vocab for i in range(min(_N_IDS, checkpoint.config.context_length))]
