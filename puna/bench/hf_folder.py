"""A checkpoint as the folder that other engines open, all in BF16; no tokenizer, for peers are given ids."""

from __future__ import annotations

from pathlib import Path

from puna.weights.files.layout import write_file
from puna.weights.load import Checkpoint
from puna.weights.targets import Texts, plan

_ONE_FILE = 1 << 62  # bytes: more than any model


def write_hf_folder(checkpoint: Checkpoint, folder: Path) -> None:
    """Raises Unsupported for rotary factors that no rule of config.json makes."""
    texts = Texts({}, {}, {"bos_token_id": 1, "eos_token_id": 2})
    target = plan(checkpoint, "hf", texts, dtype="BF16", shard_bytes=_ONE_FILE)
    for layout in target.layouts:
        write_file(folder, layout)
    for name, raw in target.files.items():
        (folder / name).write_bytes(raw)
