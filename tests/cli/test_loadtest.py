"""`puna loadtest` against a scripted server: what it prints, writes and refuses."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from loadtest import scripted as to

from puna.cli.main import main


async def good(path: str, body: dict[str, Any], headers: dict[str, str], writer: Any) -> None:
    models = path == "/v1/models"
    writer.write(to.plain(200, {"data": [{"id": "tiny"}]}) if models else to.answer(3, n_cached=2))


async def bad(path: str, body: dict[str, Any], headers: dict[str, str], writer: Any) -> None:
    writer.write(to.plain(503, {"error": "full"}))


def test_a_table_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    out, png = tmp_path / "out.json", tmp_path / "out.png"
    with to.running(good) as (url, server):
        options = ["--rate", "500", "--requests", "20", "--key", "a=ka*3", "--key", "kb", "--warmup", "2"]
        assert main(["loadtest", url, *options, "--output", str(out), "--plot", str(png)]) == 0
        assert {body["model"] for body in server.bodies} == {"tiny"}
        assert set(server.keys) == {"Bearer ka", "Bearer kb"}
    text = capsys.readouterr().out
    assert "open loop, poisson arrivals at 500/s" in text
    assert "succeeded        20 of 20" in text
    assert "140 in, 60 out, 40 from the prefix cache" in text
    assert "TTFT <= 450 ms and TPOT <= 40 ms" in text
    assert "tenant-2" in text
    for secret in ("ka", "kb"):
        assert f" {secret}" not in text
        assert f'"{secret}' not in out.read_text()
    assert len(json.loads(out.read_text())["each"]) == 20
    assert png.read_bytes().startswith(b"\x89PNG")


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    with to.running(good) as (url, _):
        assert main(["loadtest", url, "--concurrency", "2", "--requests", "4", "--json", "--model", "x"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["requests"], found["output_tokens"]) == ("x", 4, 12)
    assert set(found["ttft_ms"]) == {"mean", "p50", "p90", "p95", "p99", "max"}
    assert found["load"]["loop"] == "closed"


def test_a_load_without_any_answer_fails_with_its_report(capsys: pytest.CaptureFixture[str]) -> None:
    with to.running(bad) as (url, _):
        assert main(["loadtest", url, "--rate", "100", "--requests", "3", "--model", "x"]) == 1
    text = capsys.readouterr().out
    assert "succeeded        0 of 3" in text
    assert "status_503 3" in text
    assert 'note: status_503, 3 requests, the first: {"error": "full"}' in text


def test_ctrl_c_reports_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    n = 0

    async def script(path: str, body: dict[str, Any], headers: dict[str, str], writer: Any) -> None:
        nonlocal n
        n += 1
        if n <= 3:
            await good(path, body, headers, writer)
            return
        await asyncio.sleep(0.05)  # the third answer is read
        os.kill(os.getpid(), signal.SIGINT)

    with to.running(script) as (url, _):
        code = main(["loadtest", url, "--concurrency", "1", "--requests", "9", "--json", "--model", "x"])
    assert code == 130
    found = json.loads(capsys.readouterr().out)
    assert (found["interrupted"], found["requests"], found["unfinished"]) == (True, 3, 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "expected one of --rate, --concurrency"),
        (["--rate", "1", "--concurrency", "2"], "give one"),
        (["--concurrency", "2", "--arrivals", "gamma"], "give one"),
        (["--arrivals", "gamma"], "--arrivals needs --rate"),
        (["--rate", "1", "--burstiness", "2"], "--arrivals gamma"),
        (["--rate", "1", "--requests", "0"], "--requests must be from 1"),
        (["--rate", "1", "--timeout", "0"], "--timeout must be from"),
        (["--rate", "1", "--target-ttft", "nan"], "--target-ttft must be from"),
        (["--rate", "1", "--key", "secret*x"], "weight of --key number 1 must be a number"),
        (["--rate", "1", "--key", "a=sec ret"], "printable ASCII"),
        (["--rate", "1", "--key", "@/no/such/file"], "/no/such/file"),
        (["--rate", "1", "--output", "/no/such/folder/x"], "its folder does not exist"),
        (["--trace", "/no/such/trace"], "/no/such/trace"),
        (["--trace", "x", "--prefix-share", "0.5"], "has its own lengths"),
        (["--rate", "1", "--rates", "2"], "no option --rates; did you mean '--rate'"),
    ],
)
def test_refusals(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loadtest", "http://127.0.0.1:9", *options]) != 0
    found = capsys.readouterr()
    assert said in found.err
    assert not any(secret in found.err for secret in ("secret", "sec ret"))
    assert found.out == ""


def test_other_machines_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loadtest", "http://192.0.2.1", "--rate", "1"]) == 2
    assert "--yes-remote" in capsys.readouterr().err


def test_plot_without_matplotlib(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puna.loadtest.plot.find_spec", lambda name: None)
    assert main(["loadtest", "http://127.0.0.1:9", "--rate", "1", "--plot", "x.png"]) == 2
    assert "pip install 'puna[loadtest]'" in capsys.readouterr().err
