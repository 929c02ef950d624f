"""What executors do not compute yet of what a configuration can describe."""

from __future__ import annotations

from puna.core import Unsupported
from puna.model.config import ModelConfig

# fields of ModelConfig that the numpy and the torch executor compute, but the compiled one does not
_NOT_NATIVE = {"cross_attention": "cross-attention to images", "vision": "an image encoder"}


def refuse_uncomputed(cfg: ModelConfig, *, native: bool) -> None:
    """Raise `Unsupported` for a configuration that an executor (the `native` one) computes in part only."""
    not_native = [meaning for field, meaning in _NOT_NATIVE.items() if native and getattr(cfg, field)]
    if not_native:
        raise Unsupported(
            f"this model needs {', '.join(not_native)}, which the native backend does not compute yet; "
            "use backend torch"
        )
