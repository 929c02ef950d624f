"""A few thousand cases of tests/fuzz/fuzz_gguf.py, in this process and without the native packer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fuzz.fuzz_gguf import ALLOWED_BYTES, make_bases, mutate, run_case

from puna.weights.blocks.formats import GGUF_FORMATS


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_load_or_are_refused(seed: int, tmp_path: Path) -> None:
    bases = make_bases(tmp_path)
    assert len(bases) == len(GGUF_FORMATS)
    statuses: Counter[str] = Counter()
    for case in range(1000):
        raw = mutate(bases[case % len(bases)], np.random.default_rng([seed, case]))
        outcome = run_case(raw, tmp_path / "case.gguf", None)
        assert outcome.beyond_file <= ALLOWED_BYTES, case
        statuses[outcome.status] += 1
    assert statuses["opened"] > 250
    assert statuses["refused"] > 250
    assert statuses.total() == statuses["opened"] + statuses["refused"]


def test_undamaged_files_open(tmp_path: Path) -> None:
    for base in make_bases(tmp_path):
        assert run_case(base.raw, tmp_path / "case.gguf", None).status == "opened"
