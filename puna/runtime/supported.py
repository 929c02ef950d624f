"""What no executor computes yet of what a configuration can describe."""

from __future__ import annotations

from puna.core import Unsupported
from puna.model.config import ModelConfig

# fields of ModelConfig that block.py does not read yet
_UNCOMPUTED = {
    "experts": "a mixture of experts",
    "attention_chunk": "chunked attention",
    "no_rope_every": "layers without rotary positions",
    "qk_norm": "normalized queries and keys",
    "query_temperature": "a query temperature",
    "cross_attention": "cross-attention to images",
    "vision": "an image encoder",
}


def refuse_uncomputed(cfg: ModelConfig) -> None:
    """Raise `Unsupported` for a configuration that asks for more than block.py defines."""
    asked = [meaning for field, meaning in _UNCOMPUTED.items() if getattr(cfg, field)]
    if asked:
        raise Unsupported(
            f"this model needs {', '.join(asked)}, which Puna reads and does not compute yet; "
            "choose a dense text model (`puna list --catalog` shows all)"
        )
