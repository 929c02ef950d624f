"""Responses, conversations and batches in SQLite and in a real PostgreSQL."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from puna.server.storage import batches, conversations, responses
from puna.server.storage.batches import Lost
from puna.server.storage.conversations import TooLong
from puna.server.storage.database import Database
from puna.server.storage.files import Files, InUse
from puna.server.storage.responses import Gone

NOW = datetime(2026, 11, 25, tzinfo=UTC)


def item(name: str) -> dict[str, Any]:
    return {"id": name, "type": "message", "text": "ü\n😀"}


def save(database: Database, id: str, previous: str | None, tenant: str = "acme") -> bool:
    response = {
        "id": id,
        "conversation": None,
        "previous_response_id": previous,
        "output": [item(f"{id}-out")],
    }
    with database.write() as connection:
        return responses.save(connection, tenant, "key_1", response, NOW, [item(f"{id}-in")])


def ids(items: list[dict[str, Any]] | None) -> list[str]:
    assert items is not None
    return [found["id"] for found in items]


def test_history_goes_back_to_the_first(database: Database) -> None:
    for i in range(300):
        save(database, f"r{i}", f"r{i - 1}" if i else None)
    expected = [f"r{i}-{part}" for i in range(300) for part in ("in", "out")]
    assert ids(responses.history(database, "acme", "r299")) == expected
    assert ids(responses.history(database, "acme", "r1")) == expected[:4]
    assert responses.history(database, "umbrella", "r1") is None
    for strange in ("r\0", "\ud800", "ü", ""):
        assert responses.history(database, "acme", strange) is None
        assert responses.find(database, "acme", strange) is None
        assert conversations.find(database, "acme", strange) is None
    assert responses.remove(database, "acme", "r100")
    assert not responses.remove(database, "acme", "r100")
    with pytest.raises(Gone, match="r100"):
        responses.history(database, "acme", "r299")
    assert ids(responses.history(database, "acme", "r99")) == expected[:200]


def test_a_chain_through_another_tenant_ends_there(database: Database) -> None:
    save(database, "theirs", None, "umbrella")
    save(database, "mine", "theirs")  # nobody can ask for this, but a chain must not trust that
    with pytest.raises(Gone, match="theirs"):
        responses.history(database, "acme", "mine")


def test_saving_again_replaces(database: Database) -> None:
    assert save(database, "r", None)
    assert not save(database, "r", None)
    found = responses.find(database, "acme", "r")
    assert found is not None
    assert ids(found.output) == ["r-out"]
    page = responses.input_page(database, "acme", "r", None, 10, is_rising=True)
    assert page == ([item("r-in")], False)
    assert responses.referred(database, "acme", ["r-out", "r-none"]) == {"r-out": item("r-out")}
    assert responses.referred(database, "umbrella", ["r-out"]) == {}


def test_many_add_to_a_conversation_at_once(database: Database) -> None:
    conversations.create(database, "acme", "", "conv_1", {}, [item("first")])

    def add(name: str) -> None:
        for i in range(10):
            with database.write() as connection:
                assert conversations.add(
                    connection, "acme", "conv_1", [item(f"{name}{i}a"), item(f"{name}{i}b")]
                )

    threads = [threading.Thread(target=add, args=(name,)) for name in "xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = conversations.items_of(database, "acme", "conv_1")
    assert found is not None
    items, n_bytes = found
    assert n_bytes == conversations.size(items)
    names = ids(items)
    assert len(names) == len({*names}) == 61
    for i in range(1, 61, 2):  # what was added together stays together, and in order
        assert names[i][:-1] == names[i + 1][:-1]
    for name in "xyz":
        mine = [found for found in names if found[0] == name]
        assert mine == [f"{name}{i}{part}" for i in range(10) for part in "ab"]


def test_a_conversation_has_a_size(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "MOST_BYTES", 200)
    conversations.create(database, "acme", "", "conv_1", {}, [item("a"), item("b")])
    with pytest.raises(TooLong), database.write() as connection:
        conversations.add(connection, "acme", "conv_1", [item("c")] * 3)
    with pytest.raises(TooLong):
        conversations.create(database, "acme", "", "conv_2", {}, [item("c")] * 5)
    assert conversations.find(database, "acme", "conv_2") is None
    assert conversations.remove_item(database, "acme", "conv_1", "a")
    found = conversations.items_of(database, "acme", "conv_1")
    assert found == ([item("b")], conversations.size([item("b")]))


def make_batch(database: Database, id: str = "batch_1", **changes: Any) -> batches.Batch:
    now = datetime.now(UTC)
    row = {"id": id, "tenant": "acme", "key_id": "", "endpoint": "/v1/completions", "input_file_id": "file-1"}
    row |= {"status": "in_progress", "request": {}, "models": ["tiny"], "created_at": now}
    row |= {"expires_at": now + timedelta(hours=1), "n_total": 3, "owner": "a", "owned_until": now}
    return batches.create(database, row | changes)


def test_a_batch_has_one_owner(database: Database) -> None:
    make_batch(database)
    later = datetime.now(UTC) + timedelta(minutes=1)
    assert batches.claim(database, "b", ["other"], later, 9) == []  # without its model
    assert [batch["owner"] for batch in batches.claim(database, "b", ["tiny"], later, 9)] == ["b"]
    assert batches.claim(database, "c", ["tiny"], later, 9) == []
    assert batches.renew(database, "b", later) == {"batch_1": "in_progress"}
    assert batches.renew(database, "a", later) == {}
    with pytest.raises(Lost):
        batches.record(database, "a", "batch_1", 1, {"x": 1}, is_good=True)
    batches.release(database, "b")
    assert len(batches.claim(database, "c", ["tiny"], later, 9)) == 1


def test_a_line_is_kept_once(database: Database) -> None:
    batch = make_batch(database)
    for number, is_good in ((2, True), (1, True), (2, True), (3, False)):
        batches.record(database, "a", "batch_1", number, {"n": number}, is_good=is_good)
    assert batches.done(database, "batch_1") == {1, 2, 3}
    assert [*batches.results(database, "batch_1", is_good=True)] == [{"n": 1}, {"n": 2}]
    found = batches.find(database, "acme", "batch_1")
    assert found is not None
    assert (found["n_completed"], found["n_failed"]) == (2, 1)
    batches.set_finalizing(database, "a", "batch_1")
    batches.finish(database, "a", batch, "completed", None, None, {})
    assert batches.done(database, "batch_1") == set()
    with pytest.raises(Lost):  # by somebody who has slept
        batches.record(database, "a", "batch_1", 4, {"n": 4}, is_good=True)
    assert batches.find(database, "umbrella", "batch_1") is None


def test_what_a_batch_reads_stays(database: Database, tmp_path: Path) -> None:
    limits: Any = {"max_bytes": 10, "quota_bytes": 100, "keep": timedelta(seconds=-1)}
    files = Files(database, tmp_path / "files", **limits)
    upload = files.begin("acme")
    upload.write(b"x")
    file = upload.keep("", "a", "batch", None)
    upload.close()
    batch = make_batch(database, input_file_id=file.id)
    with pytest.raises(InUse, match="batch_1"):
        files.remove("acme", file.id)
    files.sweep(datetime.now(UTC))
    assert files.path(file.id).is_file()
    batches.finish(database, "a", batch, "completed", None, None, {})
    files.sweep(datetime.now(UTC))
    assert not files.path(file.id).exists()
    batches.sweep(database, datetime.now(UTC) + timedelta(seconds=1))
    assert batches.find(database, "acme", "batch_1") is None
