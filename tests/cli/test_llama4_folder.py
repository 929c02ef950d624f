"""Llama 4 from a folder of transformers through the commands: run, converted, run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from cli.llama4_folder import BOS, greedy, write_llama4
from weights import seeing

from puna.cli.main import main
from puna.llm import LLM
from puna.text.chat import encode_chat


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama4(tmp_path_factory.mktemp("llama4") / "tiny")


def test_it_answers_as_in_transformers(folder: Path) -> None:
    with LLM(folder, backend="torch", device="cpu", context=128, cache_type="f32") as llm:
        ids = [BOS, *range(40, 60)]
        done = llm.generate(ids, temperature=0.0, max_tokens=8, ignore_end=True)
        assert list(done.token_ids) == greedy(folder, ids, 8)
        answer = llm.chat("Hello", temperature=0.0, max_tokens=4, ignore_end=True)
        prompt = encode_chat(llm.tokenizer, [{"role": "user", "content": "Hello"}], chat_format="llama4")
        assert list(answer.token_ids) == greedy(folder, prompt, 4)


def test_run_and_convert(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--backend", "torch", "--device", "cpu", "--context", "128", "--temperature", "0"]
    run += ["--max-tokens", "6", "--ignore-end"]
    answers = []
    steps: list[tuple[str, str | None]] = [("hf", None), ("gguf", "m.gguf"), ("meta", "meta"), ("hf", "back")]
    source = folder
    for form, name in steps:
        if name is not None:
            assert main(["convert", str(source), str(tmp_path / name), "--to", form]) == 0
            source = tmp_path / name
        capsys.readouterr()
        assert main(["run", str(source), "Tell me", *run]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0].strip()
    assert answers == answers[:1] * 4
    described = json.loads((tmp_path / "back" / "config.json").read_text())
    assert described["architectures"] == ["Llama4ForCausalLM"]
    assert described["bos_token_id"] == BOS


def test_a_format_for_prompts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["run", str(folder), "hello", "--backend", "torch", "--device", "cpu"]
    assert main([*asked, "--chat-format", "lama4"]) == 2
    assert "no prompt format 'lama4'; did you mean 'llama4'" in capsys.readouterr().err
    assert main([*asked, "--chat-format", "chatml", "--context", "64", "--max-tokens", "1"]) == 2
    assert "<|im_start|>" in capsys.readouterr().err


def test_vision_files_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Found, named, and refused where they belong to another model; files that say how to see are copied."""
    import torch

    hf = seeing.save("llama4", tmp_path / "hf", torch.bfloat16)
    (hf / "preprocessor_config.json").write_text('{"a": 1}')
    gguf = tmp_path / "m.gguf"
    assert main(["convert", str(hf), str(gguf), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == ["m.gguf", "mmproj-m.gguf"]
    assert main(["convert", str(hf), str(tmp_path / "hf2"), "--to", "hf"]) == 0
    assert (tmp_path / "hf2" / "preprocessor_config.json").read_text() == '{"a": 1}'
    assert main(["show", str(gguf), "--json"]) == 0
    (tmp_path / "mmproj-m.gguf").rename(tmp_path / "eyes.gguf")
    capsys.readouterr()
    assert main(["convert", str(gguf), str(tmp_path / "text"), "--to", "hf"]) == 0
    assert json.loads((tmp_path / "text" / "config.json").read_text())["model_type"] == "llama4_text"
    eyes = ["--mmproj", str(tmp_path / "eyes.gguf")]
    assert main(["convert", str(gguf), str(tmp_path / "both"), "--to", "hf", *eyes]) == 0
    assert json.loads((tmp_path / "both" / "config.json").read_text())["model_type"] == "llama4"
    capsys.readouterr()
    for source, wrong, message in (
        (gguf, gguf, "architecture 'clip', this one's is 'llama4'"),
        (hf, tmp_path / "eyes.gguf", "holds its image encoder itself"),
        (gguf, tmp_path / "none.gguf", "none.gguf"),
    ):
        command = ["convert", str(source), str(tmp_path / "out"), "--to", "hf", "--mmproj", str(wrong)]
        assert main(command) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1
    assert not list(tmp_path.glob("out*"))
