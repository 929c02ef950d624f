from __future__ import annotations

from pathlib import Path

import pytest
from llm.tiny_llm import write_tiny_llm


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model that loads at once, with room for long answers."""
    return write_tiny_llm(tmp_path_factory.mktemp("models") / "tiny.gguf", context=1 << 16)
