"""puna quantize: files that run, importances from a text and from a file, resuming, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from llm.tiny_llm import write_tiny_llm

from puna.cli.main import main
from puna.weights import convert
from puna.weights.files.gguf import GgufFile
from puna.weights.quantize.mixes import FILE_TYPES


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = main([str(arg) for arg in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    write_tiny_llm(tmp_path / "q8.gguf")
    code, _, err = run(capsys, "convert", tmp_path / "q8.gguf", tmp_path / "f32.gguf", "--dtype", "f32")
    assert code == 0, err
    return tmp_path / "f32.gguf"


@pytest.mark.parametrize("quant", FILE_TYPES)
def test_every_type_runs(quant: str, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = source.with_name("made.gguf")
    argv = ("quantize", source, made, "--type", quant, "--verify", "logits", "--json")
    code, out, err = run(capsys, *argv)
    assert code == 0, err
    report = json.loads(out)
    assert report["verified"]
    if quant == "f32":
        assert report["logits"]["max_difference"] == 0
    with GgufFile.open(made) as file:
        assert file.metadata["general.file_type"] == FILE_TYPES[quant].number
        assert file.metadata["tokenizer.ggml.model"] == "gpt2"
    code, out, err = run(capsys, "run", made, "say something", "--max-tokens", "3", "--temperature", "0")
    assert code == 0, err
    assert out


def test_importances_of_a_text(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, saved = source.with_name("book.txt"), source.with_name("book.gguf")
    text.write_text("the other weather gathers there, and then the father bathes them. " * 20)
    files = [source.with_name(f"{name}.gguf") for name in ("plain", "text", "file")]
    options = [(), ("--imatrix", text, "--save-imatrix", saved), ("--imatrix", saved)]
    for path, extra in zip(files, options, strict=True):
        code, _, err = run(capsys, "quantize", source, path, "--type", "q4_0", *extra)
        assert code == 0, err
    plain, by_text, by_file = ([t.data().tobytes() for t in GgufFile.open(p).raw_tensors()] for p in files)
    assert by_text == by_file != plain


def test_it_goes_on_after_a_kill(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, made = source.with_name("whole.gguf"), source.with_name("made.gguf")
    assert run(capsys, "quantize", source, whole, "--type", "q5_1")[0] == 0
    written = []

    def stop(*args: object) -> int:
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append(args)
        return write_piece(*args)

    write_piece = convert.write_piece
    monkeypatch.setattr(convert, "_SYNC_BYTES", 1)
    monkeypatch.setattr(convert, "write_piece", stop)
    code, _, err = run(capsys, "quantize", source, made, "--type", "q5_1")
    assert (code, made.exists()) == (130, False)
    assert "the same command goes on from here" in err
    monkeypatch.setattr(convert, "write_piece", write_piece)
    code, out, _ = run(capsys, "quantize", source, made, "--type", "q5_1", "--json")
    assert (code, json.loads(out)["resumed"]) == (0, 7)
    a, b = (list(GgufFile.open(path).raw_tensors()) for path in (whole, made))
    assert [t.data().tobytes() for t in a] == [t.data().tobytes() for t in b]


def test_a_damaged_result_is_noticed(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_frame = convert.write_frame

    def spoil(file, layout, crcs) -> None:
        write_frame(file, layout, crcs)
        file.seek(layout.pieces[3][0])
        file.write(b"\x55")

    monkeypatch.setattr(convert, "write_frame", spoil)
    made = source.with_name("made.gguf")
    code, _, err = run(capsys, "quantize", source, made, "--type", "q8_0")
    assert (code, made.exists()) == (1, False)
    assert "reads back differently" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("f32.gguf", "x.bin", "--type", "q8_0"), "whose name ends in .gguf"),
        (("q8.gguf", "x.gguf", "--type", "q4_0"), "quantized already (Q8_0), and errors add up"),
        (("f32.gguf", "x.gguf", "--type", "q4"), "--type"),
        (("f32.gguf", "x.gguf", "--type", "q4_0", "--imatrix", "none.txt"), "there is no file none.txt"),
        (("f32.gguf", "x.gguf", "--type", "q4_0", "--imatrix", "short.txt"), "need 512 at least"),
        (("f32.gguf", "x.gguf", "--type", "q4_0", "--imatrix", "f32.gguf"), "without importances"),
        (("f32.gguf", "x.gguf", "--type", "q4_0", "--save-imatrix", "i.gguf"), "give a text too"),
        (
            ("f32.gguf", "x.gguf", "--type", "q4_0", "--imatrix", "short.txt", "--save-imatrix", "q8.gguf"),
            "exists already",
        ),
        (("f32.gguf", "q8.gguf", "--type", "q4_0"), "exists already"),
        (("f32.gguf", "x.gguf", "--type", "q4_0", "--threads", "0"), "threads must be"),
    ],
)
def test_refusals(
    argv: tuple[str, ...],
    message: str,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(source.parent)
    Path("short.txt").write_text("too short")
    before = sorted(source.parent.iterdir())
    code, _, err = run(capsys, "quantize", *argv)
    assert code == 2
    assert message in err
    assert sorted(source.parent.iterdir()) == before
