"""What the compiled executor does not compute yet of what block.py defines."""

from __future__ import annotations

from puna.core import Unsupported
from puna.model.config import ModelConfig

# fields of ModelConfig that only the torch and the numpy executor read
_NOT_NATIVE = {
    "experts": "a mixture of experts",
    "attention_chunk": "chunked attention",
    "no_rope_every": "layers without rotary positions",
    "qk_norm": "normalized queries and keys",
    "query_temperature": "a query temperature",
}


def refuse_what_is_not_native(cfg: ModelConfig) -> None:
    """Raise `Unsupported` for a configuration that asks for more than the compiled executor computes."""
    asked = [meaning for field, meaning in _NOT_NATIVE.items() if getattr(cfg, field)]
    if asked:
        raise Unsupported(
            f"this model needs {', '.join(asked)}, which the native backend does not compute yet; "
            "use backend torch"
        )
