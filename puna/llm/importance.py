"""What --imatrix names as importances of columns: a file of them, or a text that the model is run over."""

from __future__ import annotations

from pathlib import Path

from puna.core import BadFile, BadValue
from puna.llm.load import Progress, read_tokenizer
from puna.weights.load import Checkpoint
from puna.weights.quantize.imatrix import Floats, is_imatrix, read_imatrix, write_imatrix

MAX_TOKENS = 65_536
_LEAST_TOKENS = 512


def importance_of(
    source: str, checkpoint: Checkpoint, max_tokens: int | None, save_to: str | None, progress: Progress
) -> dict[str, Floats]:
    """Mean squares of the inputs of every matrix, by our names; `save_to` keeps those of a text in a file.

    Raises BadFile for what is neither a text nor importances of this model.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise BadFile(f"there is no file {source}; give a text, or a .gguf file of importances")
    if is_imatrix(path):
        return read_imatrix(path, checkpoint.config)
    from puna.runtime.streamed import WINDOW, observe

    ids, bos = _tokens(path, checkpoint, MAX_TOKENS if max_tokens is None else max_tokens)
    observed = observe(checkpoint, ids, bos, progress)
    if save_to is not None:
        n_chunks = -(-len(ids) // WINDOW)
        write_imatrix(
            Path(save_to).expanduser(), observed, dataset=path.name, n_chunks=n_chunks, chunk_size=WINDOW
        )
    return {name: found.mean_squares for name, found in observed.items()}


def _tokens(path: Path, checkpoint: Checkpoint, max_tokens: int) -> tuple[list[int], int | None]:
    """The beginning of a text, and the id that windows begin with."""
    if max_tokens < _LEAST_TOKENS:
        raise BadValue(f"--imatrix-tokens must be {_LEAST_TOKENS} or more, got {max_tokens}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BadFile(f"{path} is no text in UTF-8; give a text, or a .gguf file of importances") from None
    tokenizer = read_tokenizer(checkpoint)
    ids = tokenizer.encode(text, bos=False)[:max_tokens]
    if len(ids) < _LEAST_TOKENS:
        raise BadFile(
            f"{path} has {len(ids)} tokens, and importances need {_LEAST_TOKENS} at least; give a longer text"
        )
    return ids, tokenizer.bos_id if tokenizer.add_bos else None
