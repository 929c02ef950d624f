"""Libraries of the extra `safety`, imported when a scanner needs them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from puna.core import BadInput


def need(module: str, package: str, what: str, install: str = "'puna[safety]'") -> Any:
    """An imported module. Raises BadInput that says what needs which package, and how to install it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise BadInput(f"{what} needs {package}, which is not installed: pip install {install}") from None
