"""The bench's llama.cpp, for real: every kind of job, and the requantized model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from puna.bench.jobs import Job, decode_at
from puna.bench.peer import Peer, PeerSpec
from puna.model.config import ModelConfig
from puna.weights.load import write_checkpoint
from puna.weights.synthetic import synthetic_checkpoint

pytestmark = pytest.mark.peers

SHAPE = ModelConfig(64, 2, 2, 1, 32, 96, 256, 1e-5, 1e4, context_length=1024, tied=True)
JOBS = [
    Job("prefill", 600),
    decode_at(600, 4),
    decode_at(0, 4),
    decode_at(0, 4, streams=3),
    Job("serve", 10, 5, 3),
]


@pytest.mark.parametrize("quant", [None, "q4_0"])
def test_llama_cpp_runs_every_job(quant: str | None, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    model = tmp_path / "tiny.gguf"
    write_checkpoint(synthetic_checkpoint(SHAPE, "q8_0"), model)
    spec = PeerSpec("llama.cpp", sys.executable, model, threads=1, quant=quant)
    with Peer(spec, tmp_path) as peer:
        assert peer.version
        assert peer.load_seconds > 0
        for job in JOBS + JOBS:
            assert 0 < peer.run(job) < 60
    assert (tmp_path / "q4_0.gguf").exists() == (quant is not None)
