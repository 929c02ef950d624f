"""A cold start happens in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden.tiny import TINY, write_gguf

from puna.bench.start import cold_start
from puna.core import WorkFailed


def test_cold_start(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(TINY["llama3"], path)
    start = cold_start(path, threads=1, cache_type="bf16", target="")
    assert 0 < start.load_s < start.first_token_s
    assert 10e6 < start.peak_bytes < 500e6


def test_a_failed_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(WorkFailed, match="nothing"):
        cold_start(tmp_path / "nothing.gguf", threads=1, cache_type="bf16", target="")
