"""What --imatrix names as importances of columns: a file of them, or a text that the model is run over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from puna.core import BadFile, BadValue, Batch, Chunk
from puna.llm.load import Progress
from puna.model.rope import rope_table
from puna.weights.imatrix import Floats, Observed, is_imatrix, read_imatrix, write_imatrix
from puna.weights.load import Checkpoint, open_checkpoint

MAX_TOKENS = 65_536
WINDOW = 512  # tokens that are run together, each window on its own


def importance_of(
    source: str | None, model: Path, max_tokens: int | None, save_to: str | None, progress: Progress
) -> dict[str, Floats] | None:
    """Mean squares of the inputs of every matrix by our names, or None where nobody asks for any.

    Raises BadFile for what is neither a text nor importances of this model.
    """
    if source is None:
        return None
    path = Path(source).expanduser()
    if not path.is_file():
        raise BadFile(f"there is no file {source}; give a text, or a .gguf file of importances")
    with open_checkpoint(model) as checkpoint:
        if is_imatrix(path):
            return read_imatrix(path, checkpoint.config)
        windows = _windows(path, model, checkpoint, MAX_TOKENS if max_tokens is None else max_tokens)
        observed = observe(checkpoint, windows, progress)
    if save_to is not None:
        write_imatrix(
            Path(save_to).expanduser(), observed, dataset=path.name, n_chunks=len(windows), chunk_size=WINDOW
        )
    return {name: found.mean_squares for name, found in observed.items()}


def _windows(path: Path, model: Path, checkpoint: Checkpoint, max_tokens: int) -> list[list[int]]:
    from puna.llm.load import read_tokenizer

    if max_tokens < 1:
        raise BadValue(f"--imatrix-tokens must be 1 or more, got {max_tokens}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BadFile(f"{path} is no text in UTF-8; give a text, or a .gguf file of importances") from None
    ids = read_tokenizer(checkpoint).encode(text)[:max_tokens]
    if len(ids) < WINDOW:
        raise BadFile(f"{path} has {len(ids)} tokens, and importances need {WINDOW} at least; give a longer text")
    return [ids[at : at + WINDOW] for at in range(0, len(ids) - WINDOW + 1, WINDOW)]


def observe(
    checkpoint: Checkpoint, windows: Sequence[Sequence[int]], progress: Progress
) -> dict[str, Observed]:
    """Run each window on its own and sum the squares of what every matrix is multiplied with."""
    from puna.runtime.native import NativeExecutor

    config = checkpoint.config
    longest = max(map(len, windows))
    executor = NativeExecutor(
        config,
        checkpoint.tensors,
        rope_table(config),
        cache_tokens=longest,
        max_tokens=longest,
        max_logits=longest,
        observe=True,
    )
    try:
        blocks = np.arange(executor.n_blocks, dtype=np.int32).tolist()
        for i, window in enumerate(windows):
            progress("running the text", i, len(windows))
            executor.step(Batch([Chunk(window, 0, blocks, len(window))]))  # all rows, so that every layer sees all
        progress("running the text", len(windows), len(windows))
        return executor.observed()
    finally:
        executor.close()
