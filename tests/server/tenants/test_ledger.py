"""Exactness: what was acknowledged is there, once, whatever is killed or full."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from server.postgres import Postgres
from server.tenants.rows import row, stored
from sqlalchemy import event

from puna.core import BadValue
from puna.server.storage.database import Database, open_database
from puna.server.tenants.journal import Journal
from puna.server.tenants.ledger import Ledger, LedgerUnavailable
from puna.server.tenants.usage import from_json

HERE = Path(__file__).parent


@pytest.fixture
def ledger(database: Database, tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(database, tmp_path / "journal", retry_s=0.02)
    yield opened
    opened.close()


def test_rows_are_there_when_record_returns_and_equal(ledger: Ledger, database: Database) -> None:
    async def record() -> None:
        for n in range(3):
            await ledger.record(row(n))
            assert stored(database) == [row(i) for i in range(n + 1)]

    asyncio.run(record())


def test_a_row_that_is_sent_twice_is_there_once(ledger: Ledger, database: Database) -> None:
    async def record() -> None:
        await asyncio.gather(*(ledger.record(row(n % 10)) for n in range(100)))

    asyncio.run(record())
    assert stored(database) == [row(n) for n in range(10)]


def test_many_rows_share_a_commit(ledger: Ledger, database: Database) -> None:
    commits = []
    event.listen(database.engine, "commit", commits.append)

    async def record() -> None:
        await asyncio.gather(*(ledger.record(row(n)) for n in range(2000)))

    asyncio.run(record())
    assert len(stored(database)) == 2000
    assert 1 <= len(commits) <= 20


def test_the_row_of_a_cancelled_caller_is_written(ledger: Ledger, database: Database) -> None:
    async def record() -> None:
        task = asyncio.create_task(ledger.record(row(1)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(record())
    ledger.close()
    assert stored(database) == [row(1)]


def test_after_closing_rows_are_refused(ledger: Ledger) -> None:
    ledger.close()
    assert not ledger.is_writable
    with pytest.raises(LedgerUnavailable, match="closed"):
        ledger.submit(row(1)).result()


class Writer:
    """writer.py in a process of its own."""

    def __init__(
        self, url: str, journal: Path, prefix: str, n_tasks: int, before: Sequence[str] = ()
    ) -> None:
        command = [*before, sys.executable, str(HERE / "writer.py"), url, str(journal), prefix, str(n_tasks)]
        tests = str(HERE.parent.parent)
        paths = os.pathsep.join([tests, str(Path(tests).parent), *filter(None, sys.path)])
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
        )

    def killed(self, after: float) -> set[int]:
        """kill -9, seconds after its first row -> numbers of the rows that it was promised."""
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        time.sleep(after)
        self.process.kill()
        rest = self.process.stdout.read()
        self.process.wait()
        self.process.stdout.close()
        return {int(line) for line in (first + rest).split()}


def test_kill_9_of_the_writer_loses_and_doubles_nothing(url: str, tmp_path: Path) -> None:
    chance = random.Random(1)
    promised = {}
    for prefix in ("a", "b"):  # the second starts from what the first left
        writer = Writer(url, tmp_path / "journal", prefix, n_tasks=50)
        promised[prefix] = writer.killed(chance.uniform(0, 0.3))
    database = open_database(url)
    Ledger(database, tmp_path / "journal").close()
    found = stored(database)
    for prefix, numbers in promised.items():
        mine = [each for each in found if each.request_id.startswith(prefix)]
        known = {int(each.request_id[1:]) for each in mine}
        assert numbers <= known
        assert known - numbers <= set(range(max(numbers) + 1000))  # was on its way when the kill came
        assert mine == [row(n, prefix) for n in sorted(known)]
        assert len(numbers) > 0
    database.close()


def test_kill_9_of_postgresql_under_load(postgres: Postgres, tmp_path: Path) -> None:
    """The server dies in the middle of commits and comes back; nobody who records notices."""
    database = open_database(postgres.create("killed"))
    ledger = Ledger(database, tmp_path / "journal", retry_s=0.02)
    n_rows = 0
    was_journaled = False

    async def load(stop: asyncio.Event) -> None:
        nonlocal n_rows
        while not stop.is_set():
            n = n_rows
            n_rows += 1
            await ledger.record(row(n))

    async def run() -> None:
        nonlocal was_journaled
        stop = asyncio.Event()
        tasks = [asyncio.create_task(load(stop)) for _ in range(40)]
        for _ in range(2):
            await asyncio.sleep(0.15)
            await asyncio.to_thread(postgres.kill)
            before = n_rows
            await asyncio.sleep(0.15)
            was_journaled |= ledger.n_journaled > 0
            assert n_rows > before
            await asyncio.to_thread(postgres.start)
        stop.set()
        await asyncio.gather(*tasks)
        while ledger.n_journaled:
            await asyncio.sleep(0.02)
        await ledger.record(row(n_rows))

    asyncio.run(run())
    assert was_journaled
    assert stored(database) == [row(n) for n in range(n_rows + 1)]
    ledger.close()
    database.close()


def test_both_die_and_the_journal_is_replayed_at_start(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.create("both")
    writer = Writer(url, tmp_path / "journal", "w", n_tasks=20)
    assert writer.process.stdout is not None
    first = int(writer.process.stdout.readline())
    postgres.kill()
    try:
        promised = writer.killed(after=0.3) | {first}
    finally:
        postgres.start()
    journal = (tmp_path / "journal" / "000.jsonl").read_bytes()
    assert journal
    database = open_database(url)
    Ledger(database, tmp_path / "journal").close()
    found = [int(each.request_id[1:]) for each in stored(database)]
    assert promised <= set(found)
    assert len(found) == len(set(found))
    assert (tmp_path / "journal" / "000.jsonl").read_bytes() == b""
    database.close()


def test_a_full_disk_refuses_rows_until_there_is_room(tmp_path: Path) -> None:
    """No file may grow (RLIMIT_FSIZE): neither the database's nor the journal's."""
    url = f"sqlite:///{tmp_path}/puna.db"
    writer = Writer(url, tmp_path / "journal", "", n_tasks=0)
    out, _ = writer.process.communicate(timeout=60)
    assert out.split() == [b"True", b"False", b"done"]
    assert writer.process.returncode == 0
    database = open_database(url)
    assert stored(database) == [row(n) for n in range(201)]
    database.close()


def test_a_full_disk_of_the_database_sends_rows_to_the_journal(tmp_path: Path) -> None:
    """On a disk of 2 MB in a mount namespace of its own, which is gone with its process."""
    disk = tmp_path / "disk"
    disk.mkdir()
    alone = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=2m tmpfs "$0" && exec "$@"', str(disk)]
    try:
        done = subprocess.run([*alone, "true"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare command")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    writer = Writer(f"sqlite:///{disk}/puna.db", tmp_path / "journal", str(disk), n_tasks=-1, before=alone)
    out, _ = writer.process.communicate(timeout=60)
    assert out.split() == [b"True", b"True", b"500"]
    assert writer.process.returncode == 0


def test_the_journal_tolerates_a_torn_end_and_puts_damage_aside(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append([row(0), row(1)])
    journal.append([row(2)])
    journal.close()
    path = tmp_path / "000.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for cut in (0, 1, 8, 9, 100, len(lines[2]) - 1):
        path.write_bytes(lines[0] + lines[1] + lines[2][:cut])
        torn = Journal(tmp_path)
        assert list(torn.rows) == [row(0), row(1)]
        torn.append([row(3)])
        torn.close()
        again = Journal(tmp_path)
        assert list(again.rows) == [row(0), row(1), row(3)]
        again.close()
    path.write_bytes(lines[0] + lines[1].replace(b"llama", b"lxama") + lines[2])
    damaged = Journal(tmp_path)
    assert list(damaged.rows) == [row(0), row(2)]
    damaged.close()
    assert b"lxama" in (tmp_path / "000.damaged").read_bytes()


def test_processes_have_journals_of_their_own(tmp_path: Path) -> None:
    first, second = Journal(tmp_path), Journal(tmp_path)
    first.append([row(0)])
    second.append([row(1)])
    assert (list(first.rows), list(second.rows)) == ([row(0)], [row(1)])
    second.close()  # dies
    third = Journal(tmp_path)
    assert list(third.rows) == [row(1)]
    first.close()
    third.clear()
    third.close()
    last = Journal(tmp_path)
    assert list(last.rows) == [row(0)]
    last.close()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tenant": "a\0b"}, "tenant must be a text"),
        ({"model": "\ud800"}, "model must be a text"),
        ({"request_id": "x" * 129}, "request_id must be a text of at most 128"),
        ({"request_id": ""}, "must not be empty"),
        ({"prompt_tokens": -1}, "prompt_tokens must be a whole number"),
        ({"cached_tokens": 999}, "cached_tokens must be some of the 101 prompt tokens"),
        ({"cost_nano": 2**63}, "cost_nano must be a whole number"),
        ({"output_tokens": True}, "output_tokens must be a whole number"),
        ({"queue_s": float("nan")}, "queue_s must be a finite number"),
        ({"status": "fine"}, "status must be one of"),
    ],
)
def test_rows_that_no_database_takes_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadValue, match=sentence):
        row(1, **changes)


def test_a_row_survives_json() -> None:
    for n in range(12):
        assert from_json(row(n).to_json()) == row(n)
