from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from llm.tiny_llm import write_tiny_llm

from puna import LLM


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[LLM]:
    with LLM(tiny, threads=1) as llm:
        yield llm
