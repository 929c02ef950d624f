"""Tiny checkpoints as Hugging Face has them, written by hand after the format's description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from golden.tiny import Tiny

from puna.model.names import PERMUTED, permute, to_hf
from puna.weights.blocks.quant import quantize


def write_hf(tiny: Tiny, folder: Path, kind: str = "F32", vectors: str | None = None) -> Path:
    """As save_pretrained of transformers does, values rounded to `kind` (norms to `vectors`)."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = tiny.config
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, array in tiny.tensors().items():
        part = name.split(".")[-1]
        if part in PERMUTED:
            array = permute(array, cfg.n_heads if part == "wq" else cfg.n_kv_heads)
        stored = (vectors or kind) if array.ndim == 1 else kind
        data = quantize(np.ascontiguousarray(array), stored).tobytes()
        place = [len(body), len(body) + len(data)]
        header[to_hf(name)] = {"dtype": stored, "shape": list(array.shape), "data_offsets": place}
        body += data
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)
    (folder / "config.json").write_text(json.dumps(tiny.hf))
    return folder
