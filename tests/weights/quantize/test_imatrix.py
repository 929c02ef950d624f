"""Importance matrices: through a file and back, with what llama.cpp's files hold; and bad ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from golden.tiny import TINY

from puna.core import BadFile
from puna.weights.quantize.imatrix import Observed, is_imatrix, read_imatrix, write_imatrix

CONFIG = TINY["llama31"].config


def observed() -> dict[str, Observed]:
    rng = np.random.default_rng(1)
    width = CONFIG.dim
    return {
        "layers.0.wq": Observed(rng.random((1, width)) * 7, np.array([7])),
        "layers.1.w1": Observed(rng.random((1, width)) * 9, np.array([9])),
    }


def write(path: Path, found: dict[str, Observed]) -> Path:
    write_imatrix(path, found, dataset="book.txt", n_chunks=2, chunk_size=512)
    return path


def test_there_and_back(tmp_path: Path) -> None:
    path, found = write(tmp_path / "i.gguf", observed()), observed()
    assert is_imatrix(path)
    back = read_imatrix(path, CONFIG)
    assert list(back) == list(found)
    for name, means in back.items():
        np.testing.assert_allclose(means, found[name].mean_squares, rtol=1e-6)


def test_the_file_is_as_llama_cpp_reads_it(tmp_path: Path) -> None:
    reader = GGUFReader(write(tmp_path / "i.gguf", observed()))
    assert reader.get_field("general.type").contents() == "imatrix"
    assert reader.get_field("imatrix.datasets").contents() == ["book.txt"]
    assert reader.get_field("imatrix.chunk_count").contents() == 2
    by_name = {t.name: t for t in reader.tensors}
    assert set(by_name) == {
        f"blk.{part}.weight.{what}" for part in ("0.attn_q", "1.ffn_gate") for what in ("in_sum2", "counts")
    }
    assert by_name["blk.0.attn_q.weight.counts"].data.reshape(-1).tolist() == [7.0]
    np.testing.assert_allclose(
        by_name["blk.0.attn_q.weight.in_sum2"].data.reshape(-1),
        observed()["layers.0.wq"].sums_EX[0],
        rtol=1e-6,
    )


def test_experts_that_no_token_went_to_have_the_mean_of_the_others() -> None:
    found = Observed(np.array([[2.0, 4.0], [0.0, 0.0], [6.0, 2.0]]), np.array([2, 0, 2])).mean_squares
    np.testing.assert_allclose(found, [[1, 2], [2, 1.5], [3, 1]])


def test_refusals(tmp_path: Path) -> None:
    other = replace(CONFIG, dim=2 * CONFIG.dim)
    with pytest.raises(BadFile, match=r"the matrix needs \(1, 256\); make the importances with the same"):
        read_imatrix(write(tmp_path / "a.gguf", observed()), other)
    bad = {"layers.0.wq": Observed(np.full((1, CONFIG.dim), -1.0), np.array([1]))}
    with pytest.raises(BadFile, match="no sums of squares"):
        read_imatrix(write(tmp_path / "b.gguf", bad), CONFIG)
    beyond = {"layers.77.wq": observed()["layers.0.wq"]}
    with pytest.raises(BadFile, match="is of no matrix of this model"):
        read_imatrix(write(tmp_path / "c.gguf", beyond), CONFIG)
