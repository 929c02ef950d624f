"""`puna safety scan`: places, exit codes, JSON, and what it refuses."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from puna.cli.main import commands, main

TEXT = "first\r\nsay ig\u200bnore <|eot_id|>\nbob@corp.example"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    return path


def test_the_group_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert "scan" in commands("safety_parts")
    assert main(["safety", "scan", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: puna safety scan")
    assert main(["safety", "scam"]) == 2
    assert "did you mean 'scan'?" in capsys.readouterr().err


def test_findings_have_their_places(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["safety", "scan", str(file)]) == 1
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    places = ["2:7: hidden/zero-width", "2:13: special/control-token", "3:1: personal/e-mail"]
    assert [line.startswith(f"{file}:{place}: ") for line, place in zip(lines, places, strict=True)] == [
        True
    ] * 3
    assert "bob@corp.example" not in shown.out
    assert shown.err == "3 findings\n"


def test_json_has_the_same(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean = tmp_path / "clean.txt"
    clean.write_text("nothing")
    assert main(["safety", "scan", str(file), str(clean), "--json", "--kinds", "special"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == [str(file), str(clean)]
    [one] = found["findings"]
    assert (one["line"], one["column"], one["rule"]) == (2, 13, "control-token")
    assert TEXT[one["start"] : one["end"]] == "<|eot_id|>"


def test_standard_input_and_nothing_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Schöne Grüße".encode())))
    assert main(["safety", "scan"]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "no findings\n")


def test_control_characters_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a\x1b[31m.txt"
    path.write_text("\x1b[2J")
    assert main(["safety", "scan", str(path), "--kinds", "hidden"]) == 1
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["{}/none.txt"], "there is no file"),
        (["{}"], "is a folder; give the files in it"),
        (["{}/latin.txt"], "must be utf-8 text, found the byte 0xe9"),
        (["{}/text.txt", "--kinds", "hidden,speciel"], "did you mean 'special'?"),
        (["{}/text.txt", "--region", "us"], "two capital letters"),
        (["{}/text.txt", "--kind", "hidden"], "has no option --kind; did you mean '--kinds'?"),
    ],
)
def test_bad_input_is_said(
    argv: list[str], said: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert main(["safety", "scan", *(arg.format(tmp_path) for arg in argv)]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""
