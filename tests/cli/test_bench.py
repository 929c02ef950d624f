"""puna bench, on a tiny model and with tiny sizes: what it says, not how fast anything is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from golden.tiny import TINY, write_gguf

import puna
from puna.bench import jobs, ops, peer, session
from puna.bench.report import DEFINITIONS
from puna.bench.start import Start
from puna.cli.main import main
from puna.ops.cases import LinearCase

DOC = Path(puna.__file__).parents[1] / "docs" / "bench.md"

FAKE_PEER = """
import json, sys
hello = json.loads(input())
print(json.dumps({"version": "9", "load_s": 0.5}), flush=True)
for line in sys.stdin:
    print(json.dumps({"seconds": 1.0}), flush=True)
"""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(
        jobs.QUICK,
        rounds=2,
        prompts=(32, 96, 512),
        depths=(0, 16),
        decode_tokens=3,
        stream_prompt=8,
        stream_output=4,
        limit_seconds=0.001,
        read_bytes=1 << 20,
    )
    monkeypatch.setattr(jobs, "QUICK", config)
    monkeypatch.setattr(session, "_STARTS", 1)
    monkeypatch.setattr(session, "cold_start", lambda *args: Start(0.1, 0.2, 12345))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_gguf(TINY["llama3"], path)
    return str(path)


@pytest.fixture
def fake_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "peer.py").write_text(FAKE_PEER)
    monkeypatch.setitem(peer.ENGINES, "llama.cpp", peer._Engine(str(tmp_path / "peer.py"), {}))


def run_json(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["bench", *argv, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def keys(value: Any, path: str = "") -> Iterator[str]:
    """Paths of all leaves; the extremes belong to their median."""
    if isinstance(value, dict):
        for key, item in value.items():
            base = re.sub(r"_(min|max)$", "", key)
            if base == key or base not in value:
                yield from keys(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for item in value:
            yield from keys(item, f"{path}[]")
    else:
        yield path


def test_report_has_the_documented_keys(
    capsys: pytest.CaptureFixture[str], model: str, fake_peer: None
) -> None:
    report = run_json(
        capsys,
        model,
        "--quick",
        "--streams",
        "2",
        "--vs",
        "llama.cpp",
        "--vs-quant",
        "q4_0",
        "--threads",
        "1",
    )
    text = DOC.read_text(encoding="utf-8")
    documented = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert set(keys(report)) == set(documented)
    assert len(documented) == len(set(documented))
    for definition in DEFINITIONS.values():
        assert definition in text
    assert report["definitions"] == DEFINITIONS
    assert [row["tokens"] for row in report["prefill"]] == [32, 96]
    assert [row["depth"] for row in report["decode"]] == [0, 16]
    assert [row["batch"] for row in report["batch"]] == [1, 8]
    assert report["batch"][0]["speedup"] == 1
    assert report["skipped"] == ["prefill 512 needs 513 positions, and the model was made for 128"]
    assert [row["format"] for row in report["peers"]] == ["F32", "Q4_0"]
    first = report["peers"][0]
    assert first["decode_ratio"] == first["decode"][0]["ratio"]
    # The fake takes a second for everything: ours to its tokens per second is ours times a second.
    assert first["prefill"][0]["tok_s"] == 32
    assert first["prefill_ratio"] == pytest.approx(report["prefill"][0]["tok_s"] / 32, rel=1e-3)


def test_table(capsys: pytest.CaptureFixture[str], model: str, fake_peer: None) -> None:
    assert main(["bench", model, "--quick", "--vs", "llama.cpp"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "llama.cpp (F32)  ratio" in captured.out
    assert re.search(r"^decode at 16 +[\d,.]+ +[\d,.]+-[\d,.]+ +\d+% read +3.0 ", captured.out, re.MULTILINE)
    assert "cold start: loaded in 0.10 s, first token after 0.20 s" in captured.out
    assert "left out: prefill 512 needs 513 positions" in captured.out


@pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers and torch")
def test_torch_beside_transformers(capsys: pytest.CaptureFixture[str], model: str) -> None:
    """The real peer: it takes the same jobs, in the type of our weights."""
    argv = ("--quick", "--rounds", "1", "--backend", "torch", "--device", "cpu", "--vs", "transformers")
    report = run_json(capsys, model, *argv, "--threads", "1")
    machine, found = report["machine"], report["peers"][0]
    assert (machine["backend"], machine["device"], machine["weights"]) == ("torch", "cpu", "f32")
    assert (found["engine"], found["format"]) == ("transformers", "F32")
    assert [row["depth"] for row in found["decode"]] == [0, 16]
    assert all(row["tok_s"] > 0 for rows in ("prefill", "decode", "batch") for row in found[rows])


@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
def test_limits_of_a_device() -> None:
    """On the CPU here, where only their definitions can be tried."""
    probe = import_module("puna.bench.torch_limits").TorchProbe(jobs.QUICK, "cpu")
    limits = probe.measure()
    assert min(limits.read_gb_s, limits.int8_tops, limits.bf16_tflops) > 0
    assert probe.seen == [limits]


def test_synthetic_shape(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(session.catalog.find("llama-2-7b"), config=TINY["llama3"].config)
    monkeypatch.setattr(session.catalog, "find", lambda name: entry)
    report = run_json(capsys, "--quick", "--rounds", "1", "--synthetic", "llama-2-7b", "--quant", "q8_0")
    assert report["model"]["name"] == "llama-2-7b, random weights in q8_0"
    assert report["model"]["format"] == "Q8_0"
    assert report["config"]["rounds"] == 1
    assert report["peers"] == []


def test_fewer_layers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(session.catalog.find("llama-2-7b"), config=TINY["llama3"].config)
    monkeypatch.setattr(session.catalog, "find", lambda name: entry)
    quick = ("--quick", "--rounds", "1", "--synthetic", "llama-2-7b")
    whole, cut = (run_json(capsys, *quick, *more) for more in ((), ("--layers", "1")))
    assert cut["model"]["name"] == "llama-2-7b, 1 layers, random weights in q4_0"
    assert cut["model"]["parameters"] < whole["model"]["parameters"]


def test_ops(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(ops.cases()) == 20 * len(ops.TOKENS)
    monkeypatch.setattr(ops, "cases", lambda: [LinearCase("Q4_1", 1, 32, 64), LinearCase("BF16", 5, 32, 64)])
    monkeypatch.setattr(ops, "_SECONDS", 0.0001)
    report = run_json(capsys, "--ops")
    targets = report["ops"][::2]
    assert targets[0]["target"] == "scalar"
    assert len(report["ops"]) == 2 * len(targets)
    assert all(row["gop_s"] > 0 and row["share_of_peak"] > 0 for row in report["ops"])
    monkeypatch.setenv("PUNA_CPU", "scalar")
    assert main(["bench", "--ops"]) == 0
    assert re.search(r"^scalar +BF16 +5 ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--quant", "q4_0"], "--quant is the format of --synthetic weights"),
        (["--layers", "2"], "--layers cuts the shape of --synthetic weights"),
        (["--synthetic", "llama-3.2-1b", "--layers", "17"], "--layers must be from 1 to the 16 of llama-3.2"),
        (["--vs-quant", "q4_0"], "--vs-quant needs --vs llama.cpp"),
        (["--peer-python", "python"], "--peer-python needs --vs"),
        (["--threads", "0"], "--threads must be from 1 to"),
        (["--rounds", "0"], "rounds must be 1 or more, got 0"),
        (["--synthetic", "lama-3.2-1b"], "did you mean 'llama-3.2-1b'?"),
        (["--synthetic", "llama-3.2-1b", "--quant", "q4_k"], "unknown quantization 'q4_k'; did you mean"),
        (["--vs", "llama"], "invalid choice: 'llama'"),
    ],
)
def test_bad_input(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_a_model_that_does_not_fit(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "available_bytes", lambda: 1 << 20)
    assert main(["bench", model, "--quick"]) == 2
    assert "of memory" in capsys.readouterr().err


def test_a_peer_that_is_not_there(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["bench", model, "--quick", "--vs", "llama.cpp", "--peer-python", str(tmp_path / "nothing")]
    assert main(argv) == 2
    assert "--peer-python must be a Python interpreter" in capsys.readouterr().err
