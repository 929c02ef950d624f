"""puna convert, and the commands that take what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from golden.tiny import TINY
from llm.tiny_llm import write_tiny_llm
from weights.hf_folder import write_hf

from puna.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main([str(arg) for arg in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def answer(capsys: pytest.CaptureFixture[str], model: Path) -> tuple[list[int], Any]:
    argv = ("run", str(model), "say something", "--json", "--temperature", "0", "--max-tokens", "24")
    code, out, err = run(capsys, *argv, "--logprobs", "2")
    assert code == 0, err
    report = json.loads(out)
    return report["token_ids"], report["logprobs"]


def test_every_format_runs_and_answers_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights, tokenizer, template and end tokens: one model through all formats, bit for bit."""
    write_tiny_llm(tmp_path / "q8.gguf")
    first = tmp_path / "hf"
    steps: list[tuple[str, ...]] = [
        ("q8.gguf", "hf", "--to", "hf", "--dtype", "f32"),
        ("hf", "f32.gguf"),
        ("f32.gguf", "meta", "--to", "meta"),
        ("meta", "hf2", "--to", "hf"),
        ("hf2", "f32b.gguf"),
    ]
    for source, destination, *options in steps:
        code, out, err = run(
            capsys,
            "convert",
            str(tmp_path / source),
            str(tmp_path / destination),
            *options,
            "--verify",
            "logits",
        )
        assert code == 0, err
        assert "read back and compared" in out
        assert "100.0% of" in out
    expected = answer(capsys, first)
    assert len(expected[0]) == 24
    for name in ("f32.gguf", "meta", "hf2", "f32b.gguf"):
        assert answer(capsys, tmp_path / name) == expected, name
    assert (first / "model.safetensors").read_bytes() == (tmp_path / "hf2" / "model.safetensors").read_bytes()


def test_json_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hf = write_hf(TINY["llama2"], tmp_path / "hf")
    code, out, err = run(
        capsys, "convert", str(hf), str(tmp_path / "meta"), "--to", "meta", "--shards", "2", "--json"
    )
    assert code == 0
    report = json.loads(out)
    assert report["format"] == "meta"
    assert report["files"] == ["consolidated.00.pth", "consolidated.01.pth", "params.json"]
    assert report["n_tensors"] == 21
    assert report["resumed"] == 0
    assert report["notes"] == ["params.json has no place for the context of 128 tokens; readers assume 2,048"]
    assert err.split() == ["converting", "verifying"]
    code, out, _ = run(capsys, "show", str(tmp_path / "meta"), "--json")
    assert code == 0
    assert json.loads(out)["config"]["dim"] == 128


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("out",), "say what out is to be: --to gguf, hf, meta"),
        (("out", "--to", "gguf"), "a GGUF file ends in .gguf and a folder does not"),
        (("out.gguf", "--to", "hf"), "a GGUF file ends in .gguf and a folder does not"),
        (("out.gguf", "--shards", "2"), "--shards is for --to meta, and DST is to be gguf"),
        (("out", "--to", "meta", "--shard-size", "2"), "--shard-size is for --to hf"),
        (("out", "--to", "hf", "--shard-size", "0"), "--shard-size must be above 0 GB"),
        (("out", "--to", "meta", "--shards", "3"), "must divide 2 key/value heads"),
        (("out", "--to", "meta", "--shards", "0"), "must divide 2 key/value heads"),
    ],
)
def test_bad_usage(
    argv: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hf = write_hf(TINY["llama2"], tmp_path / "hf")
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "convert", str(hf), *argv)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_tokenizer_of_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from text.vocabularies import smollm2

    from puna.text.files import hf_files

    hf = write_hf(TINY["llama2"], tmp_path / "hf")
    metadata = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in smollm2().items()}
    for name, raw in hf_files(metadata, 128).items():
        (hf / name).write_bytes(raw)
    code, _, err = run(capsys, "convert", str(hf), str(tmp_path / "out.gguf"))
    assert code == 2
    assert "tokens and the model 96 rows of embeddings; it is another model's" in err
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
