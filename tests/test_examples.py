"""Every example runs, on a tiny model."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from llm.tiny_llm import write_tiny_llm

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PUNA_THREADS", "1")
    monkeypatch.setattr(sys, "argv", [str(path), str(write_tiny_llm(tmp_path / "tiny.gguf"))])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out
