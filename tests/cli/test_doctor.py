"""puna doctor."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

import puna
from puna.cli import doctor
from puna.cli.main import main


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(doctor, "_READ_BYTES", 1 << 20)
    monkeypatch.setattr(doctor, "_SECONDS", 0.001)
    return tmp_path / "home"


def test_packages_are_those_of_the_project() -> None:
    project = tomllib.loads((Path(puna.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert tuple(re.match(r"[\w.-]+", line)[0] for line in project["dependencies"]) == doctor.PACKAGES  # type: ignore[index]


def test_report(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    (home / "partial" / "x").mkdir(parents=True)
    (home / "partial" / "x" / "y.part").write_bytes(bytes(5000))
    code = main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == (1 if report["missing"] else 0)
    assert report["puna"] == puna.__version__
    assert report["store"]["path"] == str(home)
    assert report["store"]["partial_bytes"] == 5000
    assert report["memory"]["total_bytes"] > report["memory"]["available_bytes"] > 0
    assert all(report["packages"].values())
    assert main(["doctor"]) == code
    out = capsys.readouterr().out
    assert "none yet; `puna pull smollm2` brings a small one" in out
    assert "5.0 kB of unfinished pulls" in out


def test_what_is_missing_comes_with_the_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "no-such-package"))
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)

    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(doctor, "import_module", absent)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "missing: no-such-package; run `" in out
    assert "missing: the compiled extension puna._native; install a C++ compiler" in out
    assert "-m ensurepip`" in out


def test_a_cpu_target_that_is_not_there_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("puna._native")
    monkeypatch.setenv("PUNA_CPU", "z80")
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err.startswith("puna: PUNA_CPU must be one of scalar")
