"""The scenarios of scenarios.toml, through the command line."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from puna.cli.main import main
from puna.license.agreements import DISCLAIMER, agreements
from puna.weights.files.gguf import write_gguf
from puna.weights.files.values import Value, ValueType

HERE = Path(__file__).parent
SCENARIOS = tomllib.loads((HERE / "scenarios.toml").read_text("utf-8"))["scenario"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "home"))


def write(place: Path, scenario: dict[str, Any]) -> None:
    place.mkdir()
    for name, text in scenario.get("files", {}).items():
        notice = re.fullmatch(r"NOTICE_OF (.*)", text)
        (place / name).write_text(agreements()[notice[1]].notice if notice else text, "utf-8")
    if tags := scenario.get("gguf"):
        values = {
            key: Value.of(ValueType.UINT32 if isinstance(value, int) else ValueType.STRING, value)
            for key, value in ({"general.architecture": "llama"} | tags).items()
        }
        write_gguf(place / "a-model.gguf", values, [])


def checked(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any]]:
    code = main(["license", "check", *argv, "--json"])
    captured = capsys.readouterr()
    assert captured.err == ""
    return code, json.loads(captured.out)


def words(report: dict[str, Any], topic: str) -> set[str]:
    agreement, _, last = topic.rpartition("/")
    found = report["verdicts"]
    found = [v for v in found if v["topic"] == last and agreement in ("", v["agreement"])]
    return {v["verdict"] for v in found} or {"none"}


def test_there_are_enough_scenarios() -> None:
    assert len(SCENARIOS) >= 40
    assert sum("trap" in one["name"] for one in SCENARIOS) >= 15
    assert len({one["name"] for one in SCENARIOS}) == len(SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[one["name"] for one in SCENARIOS])
def test_scenario(scenario: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "a-model"
    write(place, scenario)
    paths = {"FOLDER": str(place), "FILE": str(place / "a-model.gguf")}
    argv = [re.sub("FOLDER|FILE", lambda match: paths[match[0]], arg) for arg in scenario["args"]]
    code, report = checked(capsys, *argv)
    assert {topic: words(report, topic) for topic in scenario["expect"]} == {
        topic: {word} for topic, word in scenario["expect"].items()
    }
    assert code == scenario.get("exit", 0)
    assert report["disclaimer"] == DISCLAIMER
    assert report["violated"] == sum(v["verdict"] == "violated" for v in report["verdicts"])
    for verdict in report["verdicts"][1:]:
        assert verdict["clause"]
        assert verdict["evidence"]
        assert (verdict["fix"] == "") == (verdict["verdict"] == "ok")
