"""Opening, schema, errors: on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import multiprocessing
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import insert, select, text

from puna.core import BadInput
from puna.server.storage import database as database_file
from puna.server.storage.database import Database, DatabaseUnavailable, default_url, open_database
from puna.server.storage.tables import conversation_items, conversations, files, metadata


def test_the_migrated_schema_is_that_of_the_tables(database: Database) -> None:
    with database.read() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def _open(url: str) -> int:
    database = open_database(url)
    with database.read() as connection:
        found = connection.execute(text("SELECT count(*) FROM alembic_version")).scalar_one()
    database.close()
    return int(found)


def test_several_processes_may_open_a_new_database_at_once(url: str) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_open, [url] * 2, chunksize=1) == [1] * 2


def test_a_database_of_a_newer_puna_is_refused(url: str) -> None:
    database = open_database(url)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(BadInput, match=r"has the schema '9999' of a newer Puna.*update Puna"):
        open_database(url)


def test_times_keep_their_moment_and_are_utc(database: Database) -> None:
    moment = datetime(2026, 11, 25, 1, 2, 3, 456789, timezone(timedelta(hours=5)))
    row: dict[str, object] = {
        "id": "file-1",
        "filename": "a",
        "purpose": "batch",
        "n_bytes": 1,
        "status": "processed",
    }
    row["expires_at"] = moment + timedelta(days=1)
    with database.write() as connection:
        connection.execute(insert(files), {**row, "created_at": moment})
    with database.read() as connection:
        found = connection.execute(select(files)).one()
    assert found.created_at == moment
    assert found.created_at.tzinfo is UTC
    assert found.key_id == ""
    assert found.expires_at - found.created_at == timedelta(days=1)


def test_items_go_with_their_conversation(database: Database) -> None:
    now = datetime.now(UTC)
    with database.write() as connection:
        connection.execute(
            insert(conversations),
            {"id": "conv_1", "created_at": now, "updated_at": now, "metadata": {"a": "b"}},
        )
        item = {"conversation_id": "conv_1", "position": 0, "id": "msg_1", "created_at": now}
        connection.execute(insert(conversation_items), {**item, "item": {"text": "ü\n"}})
    with database.write() as connection:
        assert connection.execute(select(conversation_items.c.item)).scalar_one() == {"text": "ü\n"}
        connection.execute(conversations.delete())
        assert connection.execute(select(conversation_items)).all() == []


def test_sqlite_syncs_every_commit(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/new/puna.db")
    with database.read() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    database.close()
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 15000}


def test_the_default_is_a_file_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "home"))
    assert default_url() == f"sqlite:///{tmp_path}/home/server.db"
    open_database().close()
    assert (tmp_path / "home" / "server.db").is_file()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nonsense with secret", "the database must be a URL, "),
        ("mysql://u:secret@h/d", "must be sqlite:///FILE or postgresql://…, got one of 'mysql'"),
        ("sqlite://", "needs a file"),
        ("postgresql://u:secret@h:port/d", "must be a URL, "),
    ],
)
def test_other_urls_are_refused_without_their_password(url: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence) as caught:
        open_database(url)
    assert "secret" not in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_file, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'puna\[postgres\]'"):
        open_database("postgresql://u@h/d")


def test_what_does_not_answer_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(
        DatabaseUnavailable, match=r"postgresql\+psycopg://u:\*\*\*@127.0.0.1:1/d failed"
    ) as caught:
        open_database("postgresql://u:secret@127.0.0.1:1/d")
    assert "secret" not in str(caught.value)
    (tmp_path / "file").write_bytes(b"no database, but text" * 100)
    with pytest.raises(DatabaseUnavailable, match="file is not a database"):
        open_database(f"sqlite:///{tmp_path}/file")
    with pytest.raises(DatabaseUnavailable, match="must be a folder"):
        open_database(f"sqlite:///{tmp_path}/file/puna.db")


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "puna.db"
    with sqlite3.connect(path) as other:  # stands in the way of the last table
        other.execute('CREATE TABLE "usage" (x INTEGER)')
    other.close()
    with pytest.raises(DatabaseUnavailable, match="table usage already exists"):
        open_database(f"sqlite:///{path}")
    with sqlite3.connect(path) as other:
        names = {name for (name,) in other.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    other.close()
    assert names == {"usage"}


def test_who_reads_before_writing_waits_for_other_writers(tmp_path: Path) -> None:
    """SQLite does not let a transaction write once others have written what it has read, however long it
    would wait, so that one which writes has to be one from its start."""
    database = open_database(f"sqlite:///{tmp_path}/puna.db")
    with database.write() as connection:
        connection.execute(text("CREATE TABLE counted (n INTEGER)"))
        connection.execute(text("INSERT INTO counted VALUES (0)"))

    def count(_: int) -> None:
        for _ in range(20):
            with database.write() as connection:
                n = connection.execute(text("SELECT n FROM counted")).scalar_one()
                connection.execute(text(f"UPDATE counted SET n = {n + 1}"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(4)))
    with database.read() as connection:
        assert connection.execute(text("SELECT n FROM counted")).scalar_one() == 80
    database.close()
