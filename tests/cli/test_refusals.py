"""What `puna cost` and `puna safety` refuse, and what a fleet of the docs serves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from puna.cli.main import main
from puna.economics.prices import shipped, write_rows

HEADER = (
    "request_id,created_at,key_id,tenant,model,endpoint,prompt_tokens,cached_tokens,output_tokens,queue_s,"
    "prefill_s,decode_s,status,finish_reason,cost_usd\n"
)
ROW = "r1,2026-11-01T00:00:00+00:00,k,acme,m,chat,10,2,5,0.1,0.2,0.3,ok,stop,0.000000001\n"


def refused(capsys: pytest.CaptureFixture[str], *command: str | Path) -> str:
    assert main([str(part) for part in command]) == 2
    return capsys.readouterr().err


def test_a_fleet_is_cut_as_it_serves_most(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["cost", "fleet", "llama-3.3-70b-instruct", "--n", "64", "--weights", "fp8", "--json"]
    rates = {}
    for n in (1, 2, 4, 8):
        assert main([*command, "--per-copy", str(n)]) == 0
        rates[n] = json.loads(capsys.readouterr().out)["serve"]["tok_s"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)["serve"]
    assert found["tok_s"] >= max(rates.values())
    assert found["tok_s"] > 10 * rates[1]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "2026-11-01T",
            "2026-13-01T",
            "created_at must be a time in ISO 8601 that exists, found",
        ),
        (",10,2,5,", ",nan,2,5,", "prompt_tokens must be a whole number, 0 or more, found 'nan'"),
        (",10,2,5,", ",10,2,-5,", "output_tokens must be a whole number, 0 or more, found '-5'"),
        (",10,2,5,", ",10,20,5,", "cached_tokens must be some of the 10 of the prompt, found 20"),
        (",0.2,0.3,", ",0.2,inf,", "decode_s must be seconds, 0 or more, found 'inf'"),
        ("0.000000001", "x", "cost_usd must be dollars"),
    ],
)
def test_a_ledger_that_is_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, old: str, new: str, said: str
) -> None:
    path = tmp_path / "usage.csv"
    path.write_text(HEADER + ROW.replace(old, new))
    error = refused(capsys, "cost", "margin", path, "--hours", "1")
    assert said in error
    assert "usage.csv:2: " in error


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("input", "1e999", "a price must be from 0 to 1,000,000 dollars, found 1e999"),
        ("input", "x", "a price must be from 0 to 1,000,000 dollars, found x"),
        ("fetched", "2026-02-30", "a day must be like 2026-12-01 and exist, found '2026-02-30'"),
        ("fetched", "2931-01-01", "was fetched on 2931-01-01, still to come"),
        ("context", "many", "context must be a number of tokens, found 'many'"),
    ],
)
def test_prices_that_cannot_be(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, field: str, value: str, said: str
) -> None:
    path = tmp_path / "prices.csv"
    names, row, *_ = write_rows(shipped()[:1]).splitlines()
    cells = dict(zip(names.split(","), row.split(","), strict=True)) | {field: value}
    path.write_text(f"{names}\n{','.join(cells.values())}\n")
    assert said in refused(capsys, "cost", "market", "llama-3.3-70b-instruct", "--prices", path)


def test_revenue_in_two_currencies(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "lift.csv"
    path.write_text("user,arm,revenue,currency\na,control,1,USD\nb,treatment,2,EUR\n")
    assert "revenue is in 'EUR' here and in 'USD' before" in refused(capsys, "cost", "lift", path)


@pytest.mark.parametrize("name", ["x" * 300, "here.txt/there"])
def test_a_file_that_cannot_be_scanned(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.txt").write_text("x")
    assert "cannot be read" in refused(capsys, "safety", "scan", name, "--kinds", "hidden")


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.csv", "text,text,unsafe\na,b,true\n"), ("a.jsonl", '{"text": "a", "text": "b", "unsafe": true}\n')],
)
def test_what_stands_there_twice_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, text: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    said = refused(capsys, "safety", "eval", "--data", path, "--classifier", "scan:hidden")
    assert f"{name}:1" in said
    assert "'text' stands there twice" in said


def test_categories_of_a_set_are_shown_without_escapes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "cases.jsonl"
    rows = [{"text": "a", "unsafe": True, "category": "x\u001b[31m"}, {"text": "b", "unsafe": False}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["safety", "eval", "--data", str(path), "--classifier", "scan:hidden"]
    for flag, value in (("--resamples", "5"), ("--threshold", "2")):  # before anything is judged
        assert "judges" not in refused(capsys, *command, flag, value)
    assert main(command) == 0
    assert "\u001b" not in capsys.readouterr().out
