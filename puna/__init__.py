"""Puna: the home where every Llama runs, fast.

>>> from puna import LLM, SamplingParams
>>> llm = LLM("smollm2")
>>> print(llm.chat("Why is the sky blue?").text)

Public names load on first use, so that `import puna` costs nothing.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> the module that defines it
_HOMES = {
    "LLM": "puna.llm",
    "Completion": "puna.core",
    "TokenLogprob": "puna.core",
    "SamplingParams": "puna.core",
    "PunaError": "puna.core",
}
__all__ = ["LLM", "Completion", "PunaError", "SamplingParams", "TokenLogprob", "__version__"]

if TYPE_CHECKING:
    from puna.core import Completion, PunaError, SamplingParams, TokenLogprob
    from puna.llm import LLM


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'puna' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
