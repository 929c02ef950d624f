"""For a quarter of a minute what `python -m serving chaos` does for twenty: clients that vanish, read slowly
or send nonsense, a server that is killed under load and another one that is told to stop.
"""

from __future__ import annotations

from pathlib import Path

from llm.tiny_llm import write_tiny_llm
from serving.chaos import Life, chaos


def test_whatever_happens_the_ledger_is_exact_and_nothing_is_held(tmp_path: Path) -> None:
    model = write_tiny_llm(tmp_path / "tiny.gguf", context=2048)
    database = f"sqlite:///{tmp_path}/ledger.db"
    lives = [Life(database), Life(database, is_killed=False)]
    missed = [
        str(figure)
        for figure in chaos(str(model), tmp_path, 8 / 60, n_malformed=300, warm_s=1, lives=lives)
        if not figure.is_met
    ]
    assert not missed
