"""Classifiers by the names that commands take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from puna.safety.verdict import Classifier


@contextmanager
def judge(name: str, prompt: str | None = None) -> Iterator[Classifier]:
    """A guard model that is loaded, or what the registry makes of a line KIND:…; closed in the end.

    Raises BadInput, and what LLM() raises.
    """
    if prompt is not None:
        from puna.safety.llama_guard import find

        prompt = find(prompt).id  # before anything is loaded
    made = _of_the_registry(name)
    if made is not None:
        yield made
        return
    from puna.llm.guards import LlamaGuard
    from puna.llm.model import LLM

    with LLM(name) as llm:
        yield LlamaGuard(llm, version=prompt, name=name)


def _of_the_registry(name: str) -> Classifier | None:
    """None for what is no line of the registry, but a model."""
    kind, colon, _ = name.partition(":")
    if not colon or kind in ("hf", "pypi") or Path(name).exists():
        return None
    from puna.safety.classifiers import make

    return make(name)
