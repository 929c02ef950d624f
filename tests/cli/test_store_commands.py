"""pull, list, show, rm: what they print, for people and for scripts."""

from __future__ import annotations

import argparse
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from llm.tiny_llm import write_tiny_llm
from weights.seeing_gguf import write_seeing

from puna.cli import common
from puna.cli.main import main
from puna.core import NotPulled
from puna.model import catalog
from puna.model.config import ModelConfig
from puna.model.sizes import n_parameters
from puna.weights import store
from puna.weights.load import write_checkpoint
from puna.weights.synthetic import synthetic_checkpoint

BYTES = b"GGUF\3" + bytes(3_000_000)  # of version 3, with empty tables


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "Tiny.gguf"
    path.write_bytes(BYTES)
    return path


def run_json(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, object]:
    assert main([*argv, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value


def test_pull_list_and_remove_for_scripts(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    pulled = run_json(capsys, "pull", str(model), "--name", "mine")
    assert pulled["name"] == "mine"
    assert Path(str(pulled["path"])).read_bytes() == BYTES
    listed = run_json(capsys, "list")["models"]
    assert listed == [pulled]
    assert run_json(capsys, "rm", "MINE", "mine") == {"removed": ["mine"], "freed_bytes": len(BYTES)}
    assert run_json(capsys, "list") == {"models": []}


def test_pull_list_and_remove_for_people(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    assert main(["list"]) == 0
    assert "no models here yet" in capsys.readouterr().out
    assert main(["pull", str(model)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("tiny is here (3.0 MB): ")
    assert captured.err == "copying Tiny.gguf\n"
    assert main(["list"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "SIZE", "PULLED", "SOURCE"]
    assert row.split()[:3] == ["tiny", "3.0", "MB"]
    assert main(["rm", "tiny", "--partial"]) == 0
    assert capsys.readouterr().out == "freed 3.0 MB\n"


def test_one_wrong_name_removes_nothing(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    main(["pull", str(model)])
    assert main(["rm", "tiny", "tinny"]) == 2
    assert "'tinny'; did you mean 'tiny'" in capsys.readouterr().err
    assert [stored.name for stored in store.list_models()] == ["tiny"]


def test_the_catalog(capsys: pytest.CaptureFixture[str]) -> None:
    models = run_json(capsys, "list", "--catalog")["models"]
    assert isinstance(models, list)
    assert {"smollm2", "llama-3.1-8b-instruct"} <= {entry["name"] for entry in models}
    assert main(["list", "--catalog"]) == 0
    assert "llama-2-7b-chat" in capsys.readouterr().out


def test_show_of_a_model_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    shown = run_json(capsys, "show", "llama-3.1-8b")
    assert shown["kv_bytes_per_token"] == 32 * 8 * 128 * 2 * 2
    assert shown["path"] is None
    assert main(["show", "llama-3.1-8b"]) == 0
    out = capsys.readouterr().out
    assert "not on this machine" in out
    assert "llama3, factor 8" in out


def test_show_of_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = ModelConfig(64, 2, 4, 2, 16, 128, 96, 1e-5, 1e4, context_length=128, tied=True)
    path = tmp_path / "tiny.gguf"
    with synthetic_checkpoint(config, "q8_0", seed=0) as checkpoint:
        write_checkpoint(checkpoint, path)
    main(["pull", str(path), "--name", "mine"])
    capsys.readouterr()
    shown = run_json(capsys, "show", "mine", "--verify")
    attention, ffn = 64 * 64 * 2 + 64 * 32 * 2, 3 * 64 * 128
    assert shown["parameters"] == 2 * (attention + ffn + 2 * 64) + 64 + 96 * 64
    assert shown["kv_bytes_per_token"] == 2 * 2 * 16 * 2 * 2
    assert shown["source"] == str(path)
    kinds = shown["tensors"]
    assert isinstance(kinds, list)
    assert [row["kind"] for row in kinds] == ["Q8_0", "F32"]
    assert sum(row["bytes"] for row in kinds) == shown["bytes"]
    assert main(["show", str(path), "--metadata"]) == 0
    out = capsys.readouterr().out
    assert "general.architecture" in out
    assert "Q8_0" in out


def test_a_model_that_sees(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Its vision file is copied, shown and removed with it."""
    folder = write_seeing(tmp_path / "Scout.gguf").parent
    (folder / "mmproj-Other-f16.gguf").write_bytes(BYTES)
    n_bytes = sum((folder / name).stat().st_size for name in ("Scout.gguf", "mmproj-Scout.gguf"))
    assert main(["pull", str(folder)]) == 0
    assert capsys.readouterr().out.endswith("\nits vision file is beside it: mmproj-Scout.gguf\n")
    shown = run_json(capsys, "show", "scout", "--verify")
    assert shown["vision_file"] == "mmproj-Scout.gguf"
    assert isinstance(shown["files"], list)
    assert [file["name"] for file in shown["files"]] == ["Scout.gguf", "mmproj-Scout.gguf"]
    assert main(["show", "scout"]) == 0
    assert "\nvision file  mmproj-Scout.gguf\n" in capsys.readouterr().out
    assert run_json(capsys, "rm", "scout")["freed_bytes"] == n_bytes
    assert main(["pull", str(folder / "Scout.gguf"), "--no-mmproj"]) == 0
    assert "\nwithout a vision file: it reads text only" in capsys.readouterr().out
    assert run_json(capsys, "show", "scout")["vision_file"] is None


def test_a_folder_of_hugging_faces_layout(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It is pulled, shown, verified and run as a file is."""
    write_tiny_llm(tmp_path / "tiny.gguf")
    folder = tmp_path / "Tiny-HF"
    assert main(["convert", str(tmp_path / "tiny.gguf"), str(folder), "--to", "hf", "--dtype", "f32"]) == 0
    run = ["--temperature", "0", "--max-tokens", "8"]
    assert main(["run", str(folder), "hello", *run]) == 0
    answer = capsys.readouterr().out
    assert main(["pull", str(folder)]) == 0
    assert capsys.readouterr().out.endswith("/Tiny-HF\n")
    shown = run_json(capsys, "show", "tiny-hf", "--verify")
    assert isinstance(shown["files"], list)
    assert {file["name"] for file in shown["files"]} == {f"Tiny-HF/{path.name}" for path in folder.iterdir()}
    for path in folder.iterdir():
        path.unlink()
    assert main(["run", "tiny-hf", "hello", *run]) == 0
    assert answer.endswith(capsys.readouterr().out)
    assert run_json(capsys, "rm", "tiny-hf")["removed"] == ["tiny-hf"]
    assert run_json(capsys, "list") == {"models": []}


def test_the_prompt_of_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = str(write_tiny_llm(tmp_path / "tiny.gguf"))
    shown = run_json(capsys, "show", path, "--prompt")
    assert shown["chat_format"] == "chatml"
    samples = shown["samples"]
    assert isinstance(samples, dict)
    talk = samples["conversation"]
    assert talk["built"] == talk["template"]
    assert talk["built"]["text"].startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im"
    )
    assert talk["built"]["ids"][0] == 1
    assert "chatml were not trained to call tools" in samples["tools"]["built"]["error"]
    assert main(["show", path, "--prompt"]) == 0
    out = capsys.readouterr().out
    assert '\n  = "<|im_start|>system\\nYou are' in out
    assert "  + " not in out


def test_the_prompt_where_template_and_format_differ(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}\x1b"
    path = str(write_tiny_llm(tmp_path / "tiny.gguf", template=template))
    assert main(["show", path, "--prompt"]) == 0
    out = capsys.readouterr().out
    assert '  - "\\n"\n' in out
    assert '  + " "\n' in out
    assert "\x1b" not in out
    path = str(write_tiny_llm(tmp_path / "none.gguf", template=None))
    assert main(["show", path, "--prompt"]) == 0
    assert "template  the file has no chat template" in capsys.readouterr().out
    assert main(["show", path, "--prompt", "--chat-format", "llama31"]) == 2
    assert "did you mean 'llama3.1'" in capsys.readouterr().err
    assert main(["show", path, "--prompt", "--chat-format", "llama3.1"]) == 0
    assert "built     the vocabulary has no special token '<|begin_of_text|>'" in capsys.readouterr().out
    assert main(["show", path, "--chat-format", "llama3.1"]) == 2
    assert "add --prompt" in capsys.readouterr().err


def test_verify_reads_the_bytes(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    main(["pull", str(model)])
    path = store.resolve("tiny")
    path.chmod(0o644)
    path.write_bytes(BYTES[:-1] + b"!")
    assert main(["show", "tiny", "--verify"]) == 2
    assert "should have sha256" in capsys.readouterr().err


def test_a_bar_on_a_terminal_and_none_in_a_pipe(model: Path) -> None:
    command = [sys.executable, "-m", "puna.cli.main", "pull", str(model)]
    ours, theirs = pty.openpty()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    drawn = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    assert done.returncode == 0
    assert b"copying Tiny.gguf" in drawn
    assert b"3.0/3.0 MB" in drawn
    assert b"\x1b[" in drawn
    piped = subprocess.run(command, capture_output=True)
    assert piped.stderr == b"copying Tiny.gguf\n"


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux says so at the end
        return b""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "pulls"), [("\n", True), ("y\n", True), ("n\n", False), ("", False)])
def test_a_missing_model_is_offered_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, model: Path, answer: str, pulls: bool
) -> None:
    asked = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", asked)
    monkeypatch.setattr(common, "ProgressBar", _NoBar)
    monkeypatch.setattr(store, "pull", lambda name, progress: store_pull(str(model), progress, name="tiny"))
    args = argparse.Namespace(model="smollm2", yes=False)
    if pulls:
        assert common.model_path(args).read_bytes() == BYTES
    else:
        with pytest.raises(NotPulled):
            common.model_path(args)
    assert (
        "smollm2 is not on this machine yet (98.4 MB, licence apache-2.0). Pull it? [Y/n]" in asked.getvalue()
    )


store_pull = store.pull


class _NoBar(common.ProgressBar):
    def __enter__(self) -> common.ProgressBar:
        return self


def test_nobody_to_ask_means_yes_is_needed(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    monkeypatch.setattr(store, "pull", lambda name, progress: store_pull(str(model), progress, name="tiny"))
    with pytest.raises(NotPulled, match="run `puna pull smollm2`"):
        common.model_path(argparse.Namespace(model="smollm2", yes=False))
    assert common.model_path(argparse.Namespace(model="smollm2", yes=True)).read_bytes() == BYTES
    assert common.model_path(argparse.Namespace(model=str(model), yes=False)) == model


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (98_362_432, "98.4 MB"),
        (4e9, "4.0 GB"),
        (2e12, "2.0 TB"),
    ],
)
def test_sizes(n_bytes: float, text: str) -> None:
    assert common.size(n_bytes) == text


def test_text_of_files_cannot_steer_the_terminal() -> None:
    assert common.printable("a\x1b[2Jb\nc\u202e") == "a\\x1b[2Jb\\nc\\u202e"


@pytest.mark.parametrize("name", [entry.name for entry in catalog.CATALOG if entry.source])
def test_every_pull_that_is_offered_says_its_size(name: str) -> None:
    text = common._about(catalog.find(name))
    assert text.endswith((" GB", " MB", " TB"))
    bytes_a_weight = {"bf16": 2, "f16": 2}.get(catalog.find(name).weights)
    if bytes_a_weight:
        about = common.size(bytes_a_weight * n_parameters(catalog.find(name).config))
        assert text == f"about {about}"
