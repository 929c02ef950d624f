"""POST /admin/sessions/save and /restore: names in a folder, nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from server.conftest import Running, Start, open_accounts

from puna.core import BadValue
from puna.server.config import ServerConfig

MESSAGES = [{"role": "user", "content": "the other day the other man said something " * 6}]


@dataclass
class Admin:
    running: Running
    folder: Path
    key: str

    def post(self, path: str, key: str | None = None, **body: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key or self.key}"}
        return httpx.post(f"{self.running.url}{path}", json=body, headers=headers, timeout=60)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.running.url}{path}", headers={"authorization": f"Bearer {self.key}"})


@pytest.fixture(scope="module")
def admin(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Admin:
    folder = tmp_path_factory.mktemp("sessions")
    accounts = open_accounts(tmp_path_factory.mktemp("ledger"))
    key = accounts.keys.create("root", "house", scopes=("inference", "admin"))[1]
    return Admin(start(ServerConfig(port=0, sessions=str(folder), max_session_mb=1), accounts), folder, key)


def test_saved_restored_and_listed(
    admin: Admin, start: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    saved = admin.post("/admin/sessions/save", name="one.two-3", messages=MESSAGES)
    assert saved.status_code == 200, saved.text
    n_tokens = saved.json()["tokens"]
    assert n_tokens >= 128
    assert os.listdir(admin.folder) == ["one.two-3.session"]
    (row,) = admin.get("/admin/sessions").json()["data"]
    assert (row["name"], row["bytes"]) == ("one.two-3", saved.json()["bytes"])
    asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 9, "seed": 2}
    first = admin.post("/v1/chat/completions", **asked).json()

    accounts = open_accounts(tmp_path_factory.mktemp("ledger"))
    key = accounts.keys.create("root", "house", scopes=("inference", "admin"))[1]
    fresh = Admin(start(ServerConfig(port=0, sessions=str(admin.folder)), accounts), admin.folder, key)
    restored = fresh.post("/admin/sessions/restore", name="one.two-3")
    assert restored.status_code == 200, restored.text
    assert restored.json()["messages"] == MESSAGES
    second = fresh.post("/v1/chat/completions", **asked).json()
    assert second["choices"][0]["message"] == first["choices"][0]["message"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == n_tokens


@pytest.mark.parametrize(
    "name",
    ["../one", "a/b", "..", ".hidden", "", "a\\b", "a\0b", "é", "x" * 101, "/etc/passwd", "a\n", "C:x"],
)
def test_no_name_is_a_path(admin: Admin, name: str) -> None:
    before = sorted(admin.folder.parent.rglob("*"))
    for action in ("save", "restore"):
        more = {"prompt": "the other day " * 40} if action == "save" else {}
        answer = admin.post(f"/admin/sessions/{action}", name=name, **more)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "name"
    assert sorted(admin.folder.parent.rglob("*")) == before


def test_what_is_wrong_gets_a_sentence(admin: Admin) -> None:
    def error(action: str, status: int, **body: Any) -> str:
        answer = admin.post(f"/admin/sessions/{action}", **body)
        assert answer.status_code == status, answer.text
        return str(answer.json()["error"]["message"])

    assert "no session 'gone'" in error("restore", 404, name="gone")
    assert "give one of the two" in error("save", 400, name="x")
    assert "give one of the two" in error("save", 400, name="x", prompt="a", messages=MESSAGES)
    assert "at least 32 tokens" in error("save", 400, name="x", prompt="short")
    assert "there is no field 'file'" in error("restore", 400, name="x", file="/etc/passwd")
    assert "no model" in error("save", 404, name="x", prompt="a", model="other")
    (admin.folder / "bad.session").write_bytes(b"\x08" + b"\0" * 50)
    assert "bad.session" in error("restore", 400, name="bad")
    (admin.folder / "large.session").write_bytes(b"\0" * 1_100_000)
    error("restore", 400, name="large")
    for name in ("bad", "large"):
        (admin.folder / f"{name}.session").unlink()
    assert not admin.running.service.calls


def test_only_administrators_may(admin: Admin) -> None:
    key = admin.running.service.accounts.keys.create("user", "acme")[1]
    for path in ("save", "restore"):
        assert admin.post(f"/admin/sessions/{path}", key, name="x").status_code == 403
        assert httpx.post(f"{admin.running.url}/admin/sessions/{path}", json={"name": "x"}).status_code == 401


def test_without_a_folder_they_are_off(
    start: Start, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    accounts = open_accounts(tmp_path_factory.mktemp("ledger"))
    key = accounts.keys.create("root", "house", scopes=("admin",))[1]
    off = Admin(start(ServerConfig(port=0), accounts), tmp_path, key)
    answer = off.post("/admin/sessions/restore", name="x")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "sessions_off")
    with pytest.raises(BadValue, match="must be a folder that exists"):
        ServerConfig(sessions=str(tmp_path / "none"))
