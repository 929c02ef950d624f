"""The ledger: rows of usage, exact whatever dies.

One thread writes. All rows that wait are committed together, so that hundreds of requests a second cost a few
syncs of the disk. While the database is away, rows go to a journal on the server's own disk and from there
into the database once it is back, before anything newer. A row that was sent twice is there once, by its
request id. `record` returns when its row is durable in either place.

If neither takes a row, `record` raises LedgerUnavailable and `is_writable` is False until one does. Such rows
are kept in memory and tried again: they were not promised to anyone, but the work was done.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.dialects import postgresql, sqlite

from puna.core import WorkFailed
from puna.server.storage.database import Database, DatabaseUnavailable, data_folder
from puna.server.storage.tables import audits
from puna.server.storage.tables import usage as table
from puna.server.tenants.journal import Journal
from puna.server.tenants.usage import Usage

_log = logging.getLogger(__name__)
_MOST_ROWS = 1000  # in one transaction
_MOST_KEPT = 100_000  # rows in memory that nothing could take

Waiting = tuple[Usage, "Future[None]"]


class LedgerUnavailable(WorkFailed):
    """Neither the database nor the journal takes a row."""


class Ledger:
    """Rows of usage in a database. Its methods are safe in any thread, `record` in any event loop.

    Raises OSError if the folder of the journal, by default in the user's data, cannot be written.
    """

    def __init__(self, database: Database, journal: Path | None = None, *, retry_s: float = 1.0) -> None:
        self._database = database
        self._retry_s = retry_s
        self._journal = Journal(journal or data_folder() / "ledger-journal")
        self._condition = threading.Condition()
        self._waiting: list[Waiting] = []
        self._n_sent = 0  # rows of the journal that are in the database already
        self._kept: list[Usage] = []  # that neither place could take
        self._is_closing = False
        self._is_away = False  # the database, when it was last tried
        self._try_at = 0.0  # by time.monotonic(), when it is away
        self._store_journal()
        self._thread = threading.Thread(target=self._run, name="puna-ledger", daemon=True)
        self._thread.start()

    @property
    def is_writable(self) -> bool:
        """False while rows cannot be made durable anywhere: then requests should be refused (503)."""
        return not self._kept and not self._is_closing

    @property
    def n_journaled(self) -> int:
        """Rows that wait in the journal for the database to come back."""
        return len(self._journal.rows)

    async def record(self, row: Usage) -> None:
        """Returns once the row is durable. Raises LedgerUnavailable where it cannot be.

        A caller that is cancelled has its row written all the same.
        """
        await asyncio.wrap_future(self.submit(row))

    def submit(self, row: Usage) -> Future[None]:
        """The same for threads: done once the row is durable."""
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # from here on nobody can cancel it
        with self._condition:
            if self._is_closing:
                future.set_exception(LedgerUnavailable("the ledger is closed, its server is shutting down"))
                return future
            self._waiting.append((row, future))
            self._condition.notify()
        return future

    def close(self) -> None:
        """Write what waits, and stop. A second time does nothing."""
        with self._condition:
            if self._is_closing:
                return
            self._is_closing = True
            self._condition.notify()
        self._thread.join()
        self._journal.close()
        for row in self._kept:  # nobody was promised these
            _log.critical("closing without a place for a row of the ledger: %s", row.to_json())

    def _run(self) -> None:
        try:
            self._write_until_closed()
        finally:  # whatever ended it, nobody waits in vain
            with self._condition:
                self._is_closing = True
                waiting, self._waiting = self._waiting, []
            for _, future in waiting:
                future.set_exception(LedgerUnavailable("the writer of the ledger has stopped; restart"))

    def _write_until_closed(self) -> None:
        while True:
            with self._condition:
                if not self._waiting and not self._is_closing:
                    self._condition.wait(self._patience())
                waiting, self._waiting = self._waiting[:_MOST_ROWS], self._waiting[_MOST_ROWS:]
                is_last = self._is_closing and not waiting
            self._write_kept()
            if waiting:
                self._write_waiting(waiting)
            if self._journal.rows and self._may_try():
                self._store_some_journal()  # not all of it at once: others wait
            if is_last:
                self._store_journal()
                return

    def _patience(self) -> float | None:
        """Seconds to wait for new rows; None is for ever."""
        if self._journal.rows and self._may_try():
            return 0
        return self._retry_s if self._kept or self._journal.rows else None

    def _write_waiting(self, waiting: Sequence[Waiting]) -> None:
        failure = self._write([row for row, _ in waiting])
        if failure is not None:
            self._keep([row for row, _ in waiting])
        for _, future in waiting:
            if failure is None:
                future.set_result(None)
            else:
                future.set_exception(failure)

    def _write_kept(self) -> None:
        while self._kept and self._write(self._kept[:_MOST_ROWS]) is None:
            del self._kept[:_MOST_ROWS]
            if not self._kept:
                _log.warning("the ledger can be written again, no row is missing")

    def _keep(self, rows: Sequence[Usage]) -> None:
        room = _MOST_KEPT - len(self._kept)
        self._kept += rows[:room]
        for row in rows[room:]:
            _log.critical("no room for a row of the ledger: %s", row.to_json())

    def _write(self, rows: Sequence[Usage]) -> LedgerUnavailable | None:
        """Make rows durable: in the database, or in the journal while it is away or older rows wait.

        An attempt at a database that is away may take seconds, so it is made when the rows are safe.
        """
        if not self._is_away and not self._journal.rows and self._store(rows):
            return None
        try:
            self._journal.append(rows)
        except OSError as error:
            if self._may_try() and self._store_journal() and self._store(rows):
                return None
            _log.error("the journal %s cannot be written: %s", self._journal.path, error)
            return LedgerUnavailable(
                f"neither the database nor the journal {self._journal.path} takes rows of usage "
                f"({error.strerror or error}); free disk space or start the database"
            )
        return None

    def _may_try(self) -> bool:
        return not self._is_away or time.monotonic() >= self._try_at

    def _store_journal(self) -> bool:
        """Send all that waits in the journal -> whether nothing waits any more."""
        while self._journal.rows:
            if not self._store_some_journal():
                return False
        return True

    def _store_some_journal(self) -> bool:
        """Send the next rows of the journal, and clear it after the last -> whether that succeeded."""
        rows = self._journal.rows
        some = rows[self._n_sent : self._n_sent + _MOST_ROWS]
        if some and not self._store(some):
            return False
        self._n_sent += len(some)
        if self._n_sent < len(rows):
            return True
        try:
            self._journal.clear()
        except OSError as error:
            _log.error("the journal %s cannot be cleared: %s", self._journal.path, error)
            self._try_again_later(0)
            return False
        self._n_sent = 0
        _log.warning("%d rows of the journal are in the database", len(rows))
        return True

    def _store(self, rows: Sequence[Usage]) -> bool:
        """Commit rows -> whether the database took them."""
        began_at = time.monotonic()
        try:
            with self._database.write() as connection:
                insert(connection, rows)
        except DatabaseUnavailable as error:
            if not self._is_away:
                _log.error("%s; rows go to the journal %s", error, self._journal.path)
            self._try_again_later(time.monotonic() - began_at)
            return False
        self._is_away = False
        return True

    def _try_again_later(self, took_s: float) -> None:
        """An attempt of `took_s` seconds failed; most of the time is for those who wait."""
        self._is_away = True
        self._try_at = time.monotonic() + max(self._retry_s, 5 * took_s)


def insert(connection: Connection, rows: Sequence[Usage]) -> None:
    """Add rows whose request ids are not there yet, with their audits."""
    add = sqlite.insert
    if connection.dialect.name == "postgresql":
        add = postgresql.insert  # type: ignore[assignment]
        # whatever its own settings are: a commit is on the disk, and a server that is stuck is away
        connection.execute(text("SET LOCAL synchronous_commit = on"))
        connection.execute(text("SET LOCAL statement_timeout = '10s'"))
    connection.execute(add(table).on_conflict_do_nothing(), [row.to_columns() for row in rows])
    audited = [row.audit.to_columns(row.request_id) for row in rows if row.audit is not None]
    if audited:
        connection.execute(add(audits).on_conflict_do_nothing(), audited)
