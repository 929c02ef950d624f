"""docs/serving.md does what it says: its requests are sent, its files read, its backups taken.

That its `puna` commands parse is tested with those of the other pages.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import ssl
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
from server.conftest import Running, Start, open_accounts
from server.postgres import Postgres

from puna.cli.main import main
from puna.cli.serve_settings import read_config
from puna.safety.policy import Policy, read_policies
from puna.server.config import ServerConfig
from puna.server.page.sessions import LASTS_S
from puna.server.storage.database import open_database
from puna.server.tenants.keys import Keys
from puna.server.tenants.prices import read_prices
from puna.server.tenants.queries import Filters, totals

GUIDE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")


def lines(program: str) -> list[str]:
    """The commands of a program that the guide shows."""
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}")
    blocks = re.findall(r"^```console\n(.*?)^```", GUIDE, flags=re.MULTILINE | re.DOTALL)
    found = [line for block in blocks for line in block.splitlines() if line.startswith(program + " ")]
    assert found
    return found


def block(kind: str) -> str:
    (found,) = re.findall(rf"^```toml {kind}\n(.*?)^```", GUIDE, flags=re.MULTILINE | re.DOTALL)
    return found


@pytest.fixture(scope="module")
def server(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Running:
    accounts = open_accounts(tmp_path_factory.mktemp("ledger"), requires_keys=True)
    return start(ServerConfig(port=0), accounts, "smollm2")


def run(command: str, folder: Path, **variables: str) -> str:
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def test_its_requests_are_answered(server: Running, tmp_path: Path) -> None:
    keys = server.service.accounts.keys
    key, admin = keys.create("app", "acme")[1], keys.create("op", "operator", scopes=["admin"])[1]
    for command in lines("curl"):
        assert run(command, tmp_path, PUNA=server.url, KEY=key, ADMIN=admin), command


def test_a_key_counts_as_soon_as_it_says(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    keys = server.service.accounts.keys
    refresh_s = inspect.signature(Keys.__init__).parameters["refresh_s"].default
    said = "within about a second"
    assert (refresh_s, f"key counts {said} on every server" in GUIDE) == (1.0, True)
    url = server.service.accounts.database.engine.url.render_as_string(hide_password=False)
    assert main(["keys", "revoke", keys.create("gone", "acme")[0].id, "--database", url]) == 0
    assert f"servers refuse it {said}" in capsys.readouterr().out


def test_a_stream_goes_on_without_its_key(server: Running) -> None:
    accounts = server.service.accounts
    key, secret = accounts.keys.create("gone", "leaving")
    body = {"model": "smollm2", "prompt": "a", "max_tokens": 60, "ignore_eos": True, "stream": True}
    asked: dict[str, Any] = {"json": body, "headers": {"authorization": f"Bearer {secret}"}, "timeout": 60}
    with httpx.stream("POST", f"{server.url}/v1/completions", **asked) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        accounts.keys.revoke(key.id)
        assert httpx.post(f"{server.url}/v1/completions", **asked).status_code == 401
        rest = list(lines)
    assert first.startswith("data: ")
    assert rest[-2:] == ["data: [DONE]", ""]
    (row,) = totals(accounts.database, ["tenant"], Filters(tenant="leaving"))
    assert (row.requests, row.output_tokens) == (1, 60)


def test_its_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(block("settings"))
    found = read_config(path)
    assert (found["log_format"], found["prefer"]) == ("json", "throughput")
    path.write_text(block("prices"))
    assert {price.model for price in read_prices(path).prices} == {"smollm2", "*"}
    path.write_text(block("safety"))
    policies = read_policies(path)
    assert (policies.default, set(policies.policies)) == ("standard", {"standard", "partner"})
    listed = re.search(r"\| Field \| Meaning \| Default \|\n(.*?)\n\n", GUIDE, re.DOTALL)
    assert listed is not None
    named = {name for row in listed[1].splitlines()[1:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == {field.name for field in fields(Policy)} - {"name"}
    assert LASTS_S == 12 * 3600  # "twelve hours"


def test_its_certificate_serves_https(start: Start, tmp_path: Path) -> None:
    for command in lines("openssl"):
        run(command, tmp_path)
    config = ServerConfig(port=0, tls_cert=str(tmp_path / "cert.pem"), tls_key=str(tmp_path / "key.pem"))
    server = start(config)
    url = server.url.replace("127.0.0.1", "localhost")
    assert url.startswith("https://")
    trusted = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    assert httpx.get(f"{url}/health", verify=trusted).status_code == 200
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.get(f"{url}/health")
    admin = server.service.accounts.keys.create("op", "operator", scopes=["admin"])[1]
    signed_in = httpx.post(f"{url}/sign-in", data={"key": admin}, verify=trusted)
    assert "secure" in signed_in.headers["set-cookie"].lower()


def test_its_backup_of_sqlite_is_whole(server: Running, tmp_path: Path) -> None:
    keys = server.service.accounts.keys
    keys.create("kept", "acme")
    folder = Path(server.service.accounts.database.engine.url.database or "").parent
    for command in lines("sqlite3"):
        run(command.replace("server.db", "puna.db"), tmp_path, PUNA_HOME=str(folder))
    with open_database(f"sqlite:///{tmp_path}/server-backup.db").read() as connection:
        (n,) = connection.exec_driver_sql("SELECT count(*) FROM api_keys").one()
    assert n == len(keys.list())


def test_its_backup_of_postgresql_is_whole(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.create("guide")
    open_database(url).close()
    for command in lines("pg_dump"):
        run(re.sub(r"postgresql://\S+", f"'{url}'", command), tmp_path)
    listed = run("pg_restore --list puna.dump", tmp_path)
    assert {"api_keys", "usage"} <= set(re.findall(r"TABLE DATA public (\w+)", listed))
