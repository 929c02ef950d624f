"""What executors do not compute yet of what a configuration can describe."""

from __future__ import annotations

from puna.core import Unsupported
from puna.model.config import ModelConfig

# fields of ModelConfig that block.py does not read yet
_NOWHERE = {
    "cross_attention": "cross-attention to images",
    "vision": "an image encoder",
}
# and those that the numpy and the torch executor compute, but the compiled one does not
_NOT_NATIVE: dict[str, str] = {}


def refuse_uncomputed(cfg: ModelConfig, *, native: bool) -> None:
    """Raise `Unsupported` for a configuration that an executor (the `native` one) computes in part only."""
    nowhere = [meaning for field, meaning in _NOWHERE.items() if getattr(cfg, field)]
    not_native = [meaning for field, meaning in _NOT_NATIVE.items() if native and getattr(cfg, field)]
    if nowhere:
        needs = ", ".join([*not_native, *nowhere])
        raise Unsupported(
            f"this model needs {needs}, which Puna reads and does not compute yet; "
            "choose a text model (`puna list --catalog` shows all)"
        )
    if not_native:
        raise Unsupported(
            f"this model needs {', '.join(not_native)}, which the native backend does not compute yet; "
            "use backend torch"
        )
