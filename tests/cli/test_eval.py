"""puna eval perplexity."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from llm.tiny_llm import write_tiny_llm

from puna.cli.main import main

TEXT = "the cat sat on the mat, and the dog did not. " * 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_llm(tmp_path_factory.mktemp("model") / "tiny.gguf", context=128))


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def run_json(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["eval", "perplexity", *argv, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_report(model: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = run_json(capsys, model, text, "--window", "64", "--stride", "32")
    assert report["model"] == model
    assert (report["window"], report["stride"], report["bos"]) == (64, 32, False)
    assert report["n_scored"] == report["n_tokens"] - 1
    # A model of random weights knows less than nothing of its 262 tokens.
    assert 200 < report["perplexity"] < 1000
    assert report["standard_error"] > 0
    limited = run_json(capsys, model, text, "--window", "64", "--limit", "65")
    assert (limited["n_tokens"], limited["n_scored"], limited["n_windows"]) == (65, 64, 2)


def test_words_for_people(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert main(["eval", "perplexity", model, "-", "--window", "64", "--stride", "48"]) == 0
    captured = capsys.readouterr()
    assert "of 64 tokens, 48 apart" in captured.out
    assert captured.err == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--window", "256"], "--window must be at most the context of the model, 128, got 256"),
        (["--window", "64", "--stride", "64"], "stride must be from 1 to 63 for this window, got 64"),
        (["--limit", "0"], "--limit must be 1 or more, got 0"),
        (["--limit", "1", "--window", "8", "--stride", "4"], "at least 2 tokens, got 1"),
    ],
)
def test_bad_values(
    argv: list[str], message: str, model: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "perplexity", model, text, *argv]) == 2
    assert message in capsys.readouterr().err


def test_bad_files(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "perplexity", model, str(tmp_path / "none.txt")]) == 2
    assert "none.txt: cannot be read: No such file" in capsys.readouterr().err
    (tmp_path / "latin1.txt").write_bytes("caf\xe9 au lait".encode("latin-1"))
    assert main(["eval", "perplexity", model, str(tmp_path / "latin1.txt")]) == 2
    assert "expected text in UTF-8, found another byte at 3" in capsys.readouterr().err
    assert main(["eval", "perplxity", model, "x"]) == 2
