"""The other end of the pipe: a peer that answers, one that is not installed, one that dies."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from puna.bench import peer
from puna.bench.jobs import Job
from puna.bench.peer import Peer, PeerSpec
from puna.core import BadValue, WorkFailed

JOB = Job("prefill", 7)


def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, python: str = sys.executable) -> Peer:
    (tmp_path / "peer.py").write_text(f"import json, os, sys\nhello = json.loads(input())\n{script}")
    monkeypatch.setitem(peer.ENGINES, "fake", peer._Engine(str(tmp_path / "peer.py"), {"PUNA_TEST": "set"}))
    return Peer(PeerSpec("fake", python, Path("model.gguf"), threads=2), tmp_path)


ANSWERS = """
print("welcome to the engine", flush=True)
version = hello["model"] + os.environ["PUNA_TEST"]
print(json.dumps({"version": version, "load_s": hello["threads"]}), flush=True)
for line in sys.stdin:
    print(json.dumps({"seconds": json.loads(line)["prompt"]}), flush=True)
"""


def test_jobs_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make(tmp_path, monkeypatch, ANSWERS) as found:
        assert (found.version, found.load_seconds) == ("model.gguf" + "set", 2)
        assert [found.run(JOB), found.run(JOB)] == [7, 7]
        process = found._process
    assert process.returncode is not None


def test_an_engine_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        BadValue, match=r"pip install engine==1\.2`, or name another interpreter with --peer-python"
    ):
        make(tmp_path, monkeypatch, 'print(json.dumps({"missing": "engine==1.2"}), flush=True)')


def test_an_engine_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkFailed, match=r"fake ended with status 3: out of luck"):
        make(tmp_path, monkeypatch, "print('out of luck', file=sys.stderr); sys.exit(3)")
    script = 'print(\'{"version": "1", "load_s": 0}\', flush=True); input(); os.abort()'
    with make(tmp_path, monkeypatch, script) as found, pytest.raises(WorkFailed, match="status -6"):
        found.run(JOB)


def test_an_interpreter_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadValue, match="--peer-python must be a Python interpreter, got no-such-python"):
        make(tmp_path, monkeypatch, "", python="no-such-python")


@pytest.mark.parametrize("script", ["llama_cpp_peer.py", "vllm_peer.py", "transformers_peer.py"])
def test_the_real_scripts_say_what_they_miss(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run without Puna, and say so where their engine cannot be imported."""
    blocked = "import sys; sys.modules.update(llama_cpp=None, vllm=None, torch=None)"
    (tmp_path / "sitecustomize.py").write_text(blocked)
    settings = {"PYTHONPATH": str(tmp_path)}
    monkeypatch.setitem(peer.ENGINES, "fake", peer._Engine(script, settings))
    with pytest.raises(BadValue, match="fake is not installed for"):
        Peer(PeerSpec("fake", sys.executable, Path("model"), 1), tmp_path)
