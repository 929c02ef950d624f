"""Links planted in a server's folders are not followed, and nothing behind them is served."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from llm.tiny_vision import png
from server.conftest import Running, Start, open_accounts

from puna.server.config import ServerConfig

LOST = "the content of {id} cannot be read from this server's disk; upload the file again"
SECRET = b"root:x:0:0: the password of somebody else\n"
Plant = Callable[[Path, Path], None]  # a link at the first path, to the second


def symbolic(at: Path, target: Path) -> None:
    at.symlink_to(target)


def hard(at: Path, target: Path) -> None:
    at.hardlink_to(target)


def relative(at: Path, target: Path) -> None:
    at.symlink_to(os.path.relpath(target, at.parent))


def pipe(at: Path, target: Path) -> None:
    """Whose opening would wait for ever."""
    os.mkfifo(at)


PLANTS = [symbolic, relative, hard, pipe]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    return path


def planted(running: Running, plant: Plant, id: str, target: Path) -> None:
    at = Path(running.service.config.files_folder) / id
    at.unlink()
    plant(at, target)


@pytest.mark.parametrize("plant", PLANTS)
def test_no_file_is_a_link(server: Running, plant: Plant, secret: Path) -> None:
    client = server.openai()
    id = client.files.create(file=("a", SECRET), purpose="user_data").id
    assert client.files.content(id).read() == SECRET
    planted(server, plant, id, secret)
    answer = httpx.get(f"{server.url}/v1/files/{id}/content")
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == LOST.format(id=id)
    assert client.files.delete(id).deleted
    assert secret.read_bytes() == SECRET


@pytest.mark.parametrize("plant", PLANTS)
def test_no_picture_is_a_link(seeing: Running, plant: Plant, tmp_path: Path) -> None:
    target = tmp_path / "private.png"
    target.write_bytes(png())
    id = seeing.openai().files.create(file=("a.png", png()), purpose="vision").id
    part = {"type": "image_url", "image_url": {"file_id": id}}
    body = {"model": "tiny", "messages": [{"role": "user", "content": [part]}], "max_tokens": 1}
    assert seeing.post("/v1/chat/completions", body).status_code == 200
    planted(seeing, plant, id, target)
    answer = seeing.post("/v1/chat/completions", body)
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == LOST.format(id=id)


@pytest.mark.parametrize("plant", PLANTS)
def test_no_batch_reads_a_link(server: Running, plant: Plant, secret: Path) -> None:
    client = server.openai()
    id = client.files.create(file=("a.jsonl", b"{}"), purpose="batch").id
    planted(server, plant, id, secret)
    batch = client.batches.create(input_file_id=id, endpoint="/v1/completions", completion_window="24h")
    end = time.monotonic() + 20
    while (found := client.batches.retrieve(batch.id)).status == "validating" and time.monotonic() < end:
        time.sleep(0.02)
    assert found.status == "failed"
    assert "cannot be read from this server's disk" in str(found.errors)
    assert "root:" not in str(found.errors)


def test_no_result_is_written_through_a_link(server: Running, secret: Path) -> None:
    """Ids of results follow from the batch's, so somebody can be there first."""
    folder = Path(server.service.config.files_folder)
    folder.mkdir(exist_ok=True)
    (folder / "file-1.part").symlink_to(secret)
    (folder / "file-1").symlink_to(secret)
    server.service.files.write("file-1", [b"result"])
    assert secret.read_bytes() == SECRET
    assert not (folder / "file-1").is_symlink()
    assert (folder / "file-1").read_bytes() == b"result"
    assert not (folder / "file-1.part").is_symlink()


def test_sweeping_ends_at_links(server: Running, tmp_path: Path, secret: Path) -> None:
    """It goes on behind what cannot be swept: a batch's server would take no more batches."""
    folder = Path(server.service.config.files_folder)
    folder.mkdir(exist_ok=True)
    os.utime(secret, (0, 0))
    (folder / "file-a").symlink_to(tmp_path / "nothing")
    (folder / "file-b").symlink_to(secret)
    (folder / "file-c").mkdir()
    (folder / "file-d").write_bytes(b"")
    for name in ("file-a", "file-b", "file-c", "file-d"):
        os.utime(folder / name, (0, 0), follow_symlinks=False)
    server.service.files.sweep(datetime.now(UTC))
    assert [path.name for path in folder.iterdir() if path.name[5:] in list("abcd")] == ["file-c"]
    assert secret.read_bytes() == SECRET


@pytest.mark.parametrize("plant", PLANTS)
def test_no_session_is_a_link(start: Start, plant: Plant, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "sessions", tmp_path / "elsewhere"
    folder.mkdir()
    accounts = open_accounts(tmp_path, requires_keys=True)
    headers = {"authorization": f"Bearer {accounts.keys.create('a', 'a', scopes=('admin',))[1]}"}
    url = start(ServerConfig(port=0, sessions=str(folder)), accounts).url + "/admin/sessions"

    def post(what: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{url}/{what}", json=body, headers=headers, timeout=60)

    assert post("save", name="one", prompt="the other day " * 20).status_code == 200
    shutil.copy(folder / "one.session", elsewhere)
    whole = elsewhere.read_bytes()
    plant(folder / "two.session", elsewhere)
    listed = httpx.get(url, headers=headers).json()["data"]
    assert [session["name"] for session in listed] == ["one"]
    answer = post("restore", name="two")
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "name"
    assert post("save", name="two", prompt="a new day " * 20).status_code == 200  # in its place
    assert elsewhere.read_bytes() == whole
    assert post("restore", name="two").status_code == 200
