"""Pictures, from a file's bytes to what a model's image encoder takes."""

from puna.images.prepare import Source, prepare

__all__ = ["Source", "prepare"]
