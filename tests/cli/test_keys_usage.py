"""`puna keys` and `puna usage`, from the command line to a database and back."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from server.tenants.rows import row

from puna.cli.main import main
from puna.server.storage.database import open_database
from puna.server.tenants.keys import Keys
from puna.server.tenants.ledger import insert
from puna.server.tenants.limits import Limits


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_key_from_its_making_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    made = ["keys", "create", "--tenant", "acme", "--name", "ci", "--scope", "admin", "--scope", "inference"]
    limits = ["--requests-per-minute", "60", "--tokens-per-day", "1000", "--model", "a", "--priority", "2"]
    assert main([*made, *limits, "--expires", "30d", "--json"]) == 0
    key = json.loads(capsys.readouterr().out)
    assert key["limits"] == {
        "requests_per_minute": 60,
        "tokens_per_day": 1000,
        "models": ["a"],
        "priority": 2,
    }
    database = open_database()
    found = Keys(database).find(key["key"])
    assert found is not None
    assert found.limits == Limits(60, None, 1000, None, ("a",), 2)
    assert found.scopes == ("inference", "admin")

    assert main(["keys", "list"]) == 0
    out = capsys.readouterr().out
    assert key["prefix"] in out
    assert "requests_per_minute 60; tokens_per_day 1000; models a; priority 2" in out
    assert key["key"] not in out

    assert main(["keys", "revoke", key["id"]]) == 0
    assert "is revoked" in capsys.readouterr().out
    assert Keys(database).find(key["key"]) is None
    database.close()
    assert main(["keys", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["keys"][0]["state"] == "revoked"
    assert main(["keys", "list", "--active", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"keys": []}


def test_create_prints_the_key_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", "--tenant", "acme"]) == 0
    out = capsys.readouterr().out
    assert out.count("puna-") == 1
    assert "Keep the key: it is shown this once." in out


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["create"], "a key belongs to a tenant; say whose it is with --tenant"),
        (["revoke"], "name the key to revoke"),
        (["list", "key_1"], "`puna keys list` takes no KEY, got 'key_1'"),
        (["list", "--priority", "1"], "--priority belongs to `puna keys create`, not to list"),
        (["create", "--tenant", "a", "--scope", "x"], "scopes must be of inference, admin, got 'x'"),
        (["create", "--tenant", "a", "--expires", "5s"],
         "--expires must be a time from now, like 12h or 90d, or a day or time, like 2026-12-01 or "),
        (["create", "--tenant", "a", "--tokens-per-minute", "0"], "tokens_per_minute must be 1 or more"),
        (["revoke", "key_1"], "there is no key 'key_1'"),
        (["list", "--database", "mysql://x"], "the database must be sqlite:///FILE or postgresql://"),
    ],
)  # fmt: skip
def test_bad_usage_of_keys(argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"puna: {sentence}")
    assert captured.err.count("\n") == 1


@pytest.fixture
def url(tmp_path: Path) -> str:
    database = open_database(f"sqlite:///{tmp_path}/some.db")
    with database.write() as connection:
        insert(connection, [row(n) for n in range(6)])
    database.close()
    return f"sqlite:///{tmp_path}/some.db"


def test_usage_as_a_table_and_as_json(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["usage", "--database", url, "--by", "tenant,day"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["TENANT", "DAY", "REQUESTS", "PROMPT", "CACHED", "OUTPUT", "COST"]
    assert lines[-1].split() == ["total", "6", "615", "15", "105", "$6000.000000015"]
    assert len(lines) == 5
    assert main(["usage", "--database", url, "--by", "model", "--json", "--tenant", "acme"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(each["model"], each["prompt_tokens"]) for each in found["usage"]] == [
        ("llama", 103),
        ("smollm2", 100),
    ]
    assert found["total"]["cost_usd"] == "2000.000000003"


def test_usage_as_csv(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.csv"
    assert main(["usage", "--database", url, "--csv", str(path)]) == 0
    with path.open(encoding="utf-8", newline="") as file:
        assert [line["request_id"] for line in csv.DictReader(file)] == [row(n).request_id for n in range(6)]
    assert main(["usage", "--database", url, "--csv", "-", "--until", "2026-11-24T22:00:02Z"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--by", "tenat"], "usage is summed by"),
        (["--since", "x"], "a time must be like"),
        (["--csv", "-", "--json"], "--csv writes rows and --json sums"),
    ],
)
def test_bad_usage_of_usage(
    argv: list[str], sentence: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["usage", "--database", url, *argv]) == 2
    assert capsys.readouterr().err.startswith(f"puna: {sentence}")
