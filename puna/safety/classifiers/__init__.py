"""Classifiers that are no guard models, by what a policy or a command calls them."""

from __future__ import annotations

from puna.core import BadValue
from puna.safety.verdict import Classifier


def make(spec: str) -> Classifier:
    """Raises BadValue for what is none."""
    raise BadValue(f"there is no classifier {spec!r}")
