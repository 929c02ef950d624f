"""Classifiers that are no guard models, and `make`, which makes one from a line such as "patterns:FILE"."""

from __future__ import annotations

from puna.safety.classifiers.specs import SPECS, make

__all__ = ["SPECS", "make"]
