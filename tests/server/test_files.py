"""/v1/files, through the openai client and by hand."""

from __future__ import annotations

import errno
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from server.conftest import Running, Start, open_accounts
from sqlalchemy import update

from puna.server.batches.runner import sweep
from puna.server.config import ServerConfig
from puna.server.storage.database import DatabaseUnavailable
from puna.server.storage.tables import files

BOUNDARY = "wall"


def form(*parts: tuple[str, bytes], boundary: str = BOUNDARY) -> bytes:
    """A form by hand: parts of a Content-Disposition and a content."""
    lines = [
        f"--{boundary}\r\nContent-Disposition: {head}\r\n\r\n".encode() + content + b"\r\n"
        for head, content in parts
    ]
    return b"".join(lines) + f"--{boundary}--\r\n".encode()


def send(
    running: Running,
    body: bytes,
    kind: str = f"multipart/form-data; boundary={BOUNDARY}",
    *,
    waits: float = 60,
) -> httpx.Response:
    headers = {"content-type": kind}
    return httpx.post(f"{running.url}/v1/files", content=body, headers=headers, timeout=waits)


FIELDS = (
    ('form-data; name="purpose"', b"batch"), ('form-data; name="file"; filename="a.jsonl"', b"{}"),
)  # fmt: skip


def folder(running: Running) -> Path:
    return Path(running.service.config.files_folder)


def contents(running: Running) -> list[str]:
    found = folder(running)
    return sorted(path.name for path in found.iterdir()) if found.is_dir() else []


@pytest.fixture(scope="module")
def small(start: Start) -> Running:
    return start(ServerConfig(port=0, max_file_mb=1, file_quota_mb=2, max_body_mb=1))


def test_a_file_comes_back_as_it_went(server: Running) -> None:
    client = server.openai()
    data = os.urandom(3 << 20)  # several reads, and every byte
    expiry: Any = {"anchor": "created_at", "seconds": 3600}
    file = client.files.create(file=("../../Grüße.bin", data), purpose="user_data", expires_after=expiry)
    assert (file.filename, file.bytes, file.purpose) == ("../../Grüße.bin", len(data), "user_data")
    assert file.expires_at == file.created_at + 3600
    assert client.files.retrieve(file.id) == file
    content = client.files.content(file.id)
    assert content.read() == data
    assert content.response.headers["content-type"] == "application/octet-stream"
    assert contents(server) == [file.id]
    assert client.files.delete(file.id).deleted
    assert contents(server) == []
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match="there is no file"):
            ask(file.id)


def test_files_do_not_wait_for_prompts(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many of somebody's prompts take their time (templates, pictures, grammars)."""
    may_go_on, request = threading.Event(), server.llm.chat_request
    n_held = threading.Semaphore(0)

    def held(*args: Any, **options: Any) -> Any:
        n_held.release()
        assert may_go_on.wait(60)
        return request(*args, **options)

    monkeypatch.setattr(server.llm, "chat_request", held)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    with ThreadPoolExecutor(40) as clients:
        asked = [clients.submit(server.post, "/v1/chat/completions", body) for _ in range(40)]
        try:
            assert n_held.acquire(timeout=20)
            answer = send(server, form(*FIELDS), waits=20)
            assert answer.status_code == 200, answer.text
            with httpx.Client(base_url=server.url, timeout=20) as client:
                assert client.get("/v1/files").status_code == 200
                assert client.delete(f"/v1/files/{answer.json()['id']}").status_code == 200
        finally:
            may_go_on.set()
        assert {one.result().status_code for one in asked} == {200}


def test_files_are_listed_by_pages(server: Running) -> None:
    client = server.openai()
    made = [client.files.create(file=(f"{i}.jsonl", b"x"), purpose="batch").id for i in range(5)]
    made.append(client.files.create(file=("picture", b"x"), purpose="vision").id)
    assert [file.id for file in client.files.list(limit=2)] == made[::-1]
    assert [file.id for file in client.files.list(limit=4, order="asc", purpose="batch")] == made[:5]
    first = client.files.list(limit=2, order="asc")
    assert first.has_more
    assert [file.id for file in first.data] == made[:2]
    with pytest.raises(openai.NotFoundError):
        client.files.list(after="file-nothing")
    for id in made:
        client.files.delete(id)


def test_files_belong_to_a_tenant(start: Start, tmp_path_factory: pytest.TempPathFactory) -> None:
    accounts = open_accounts(tmp_path_factory.mktemp("ledger"), requires_keys=True)
    running = start(ServerConfig(port=0), accounts)
    assert send(running, form(('form-data; name="purpose"', b"batch"))).status_code == 401
    mine, other = (running.openai(accounts.keys.create("test", name)[1]) for name in ("acme", "umbrella"))
    same = running.openai(accounts.keys.create("second key", "acme")[1])
    file = mine.files.create(file=("a", b"x"), purpose="batch")
    for ask in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError):
            ask(file.id)
    assert other.files.list().data == []
    with pytest.raises(openai.NotFoundError):
        other.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    assert same.files.list().data == [file]
    assert same.files.delete(file.id).deleted


@pytest.mark.parametrize(
    "path", ["..%2f..%2fserver.db", "%2e%2e%2fpuna.db", "..", "file-%00", "%2fetc%2fpasswd", "x" * 5000]
)
def test_no_id_reads_another_file(server: Running, path: str) -> None:
    (folder(server).parent / "puna.db").write_text("secret")
    for tail in ("", "/content"):
        answer = httpx.get(f"{server.url}/v1/files/{path}{tail}")
        assert answer.status_code in (404, 405), answer.text
        assert "secret" not in answer.text


FILE = 'form-data; name="file"; filename="a.jsonl"'
PURPOSE = ('form-data; name="purpose"', b"batch")
WRONG = [
    ((PURPOSE,), 400, "file", "file is missing"),
    (((FILE, b"x"),), 400, "purpose", "purpose is missing"),
    (((FILE, b"x"), ('form-data; name="purpose"', b"fine-tune")), 400, "purpose", "batch, vision, user_data"),
    (((FILE, b"x"), PURPOSE, PURPOSE), 400, "purpose", "comes twice"),
    (((FILE, b"x"), (FILE, b"y"), PURPOSE), 400, "file", "one file"),
    (((FILE, b"x"), PURPOSE, ('form-data; name="prupose"', b"")), 400, "prupose", "there is no field"),
    (((FILE, b"x"), ('form-data; name="purpose"', b"b" * 5000)), 400, "purpose", "4096 bytes"),
    ((('form-data; name="file"', b"x"), PURPOSE), 400, "file", "must have a name"),
    (((FILE, b"x"), PURPOSE, ('form-data; name="expires_after[seconds]"', b"4000")), 400, "", "created_at"),
    (((FILE, b"x"),) * 20, 400, "file", "one file"),
]


@pytest.mark.parametrize(("parts", "status", "param", "said"), WRONG)
def test_wrong_forms_are_told_so_and_leave_nothing(
    server: Running, parts: tuple[tuple[str, bytes], ...], status: int, param: str, said: str
) -> None:
    answer = send(server, form(*parts))
    error = answer.json()["error"]
    assert answer.status_code == status
    assert said in error["message"]
    assert param == "" or error["param"] == param
    assert contents(server) == []


def test_what_is_no_form_is_told_so(server: Running) -> None:
    whole = form((FILE, b"x"), PURPOSE)
    for body, kind in (
        (b"{}", "application/json"),
        (whole, "multipart/form-data"),
        (b"nonsense", f"multipart/form-data; boundary={BOUNDARY}"),
        (whole[:-10], f"multipart/form-data; boundary={BOUNDARY}"),
        (whole, f"multipart/form-data; boundary={'x' * 1000}"),
    ):
        answer = send(server, body, kind)
        assert answer.status_code in (400, 415), answer.text
        assert "multipart/form-data" in answer.json()["error"]["message"] or "whole form" in answer.text
    assert contents(server) == []


def test_sizes_have_limits(small: Running) -> None:
    client = small.openai()
    kept = [client.files.create(file=("a", bytes(1 << 20)), purpose="batch").id]  # the most there may be
    for n_bytes in ((1 << 20) + 1, 3 << 20):
        with pytest.raises(openai.APIStatusError) as caught:
            client.files.create(file=("a", bytes(n_bytes)), purpose="batch")
        assert caught.value.status_code == 413
    kept.append(client.files.create(file=("b", bytes(900 << 10)), purpose="batch").id)
    with pytest.raises(openai.APIStatusError, match="file_quota_mb") as caught:
        client.files.create(file=("c", bytes(200 << 10)), purpose="batch")
    assert caught.value.status_code == 413
    assert contents(small) == sorted(kept)
    for id in kept:
        client.files.delete(id)
    client.files.delete(client.files.create(file=("c", bytes(200 << 10)), purpose="batch").id)


def test_an_upload_that_breaks_off_leaves_nothing(server: Running) -> None:
    body = form((FILE, b"x" * 1000), PURPOSE)
    host, port = server.url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head.encode() + body[:500])
        for _ in range(1000):
            if contents(server):
                break
            client.settimeout(0.01)
            try:
                client.recv(1)
            except TimeoutError:
                continue
        assert contents(server)
    for _ in range(1000):
        if not contents(server):
            break
        httpx.get(f"{server.url}/health")
    assert contents(server) == []


def test_what_has_expired_is_gone(server: Running) -> None:
    client, service = server.openai(), server.service
    file = client.files.create(file=("a", b"x"), purpose="batch")
    orphan = folder(server) / "file-orphan.part"
    orphan.write_bytes(b"x")
    sweep(service)
    assert contents(server) == sorted([file.id, orphan.name])
    with service.accounts.database.write() as connection:
        connection.execute(update(files).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)
    assert client.files.list().data == []
    old = datetime.now(UTC).timestamp() - 7200
    os.utime(orphan, (old, old))
    sweep(service)
    assert contents(server) == []


@pytest.mark.parametrize(
    ("code", "status", "said"), [(errno.EROFS, 500, "cannot write files"), (errno.ENOSPC, 507, "is full")]
)
def test_a_disk_that_takes_nothing_is_named_to_nobody(
    server: Running,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
    status: int,
    said: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    answer = send(server, form(*FIELDS))
    monkeypatch.undo()
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]
    assert "/" not in answer.json()["error"]["message"]
    assert str(folder(server)) in caplog.text


def test_a_database_that_fails_is_named_to_nobody(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service.files, "list", lambda *_, **__: broken())
    answer = httpx.get(f"{server.url}/v1/files")
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert "/srv" not in answer.text


def broken() -> None:
    raise DatabaseUnavailable("the database sqlite:////srv/puna/server.db failed: disk I/O error")
