"""Opening the database.

SQLite keeps a write-ahead log and syncs it with every commit (`synchronous=FULL`), so that what was committed
survives a kill and a power cut. PostgreSQL needs the driver psycopg 3 (extra `postgres`).

Errors: BadInput for a URL that cannot be, DatabaseUnavailable for one that does not answer.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from puna import env
from puna.core import BadInput, WorkFailed

BUSY_MS = 15_000  # how long a writer of SQLite waits for another one
CONNECT_S = 5  # to PostgreSQL


class DatabaseUnavailable(WorkFailed):
    """The database does not answer, or refuses what it must be able to do."""


@dataclass(frozen=True, slots=True)
class Database:
    """An open database with the current schema. Safe in any thread; every call blocks."""

    engine: Engine
    name: str  # its URL without the password

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection to read from. Raises DatabaseUnavailable."""
        with self.errors(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction, committed and durable when the block ends. Raises DatabaseUnavailable."""
        # SQLite: a transaction that begins by reading cannot write any more once another one has
        engine = self.engine.execution_options(sqlite_begin="IMMEDIATE")
        with self.errors(), engine.begin() as connection:
            yield connection

    @contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise DatabaseUnavailable(f"the database {self.name} failed: {_reason(error)}") from error

    def close(self) -> None:
        self.engine.dispose()


def data_folder() -> Path:
    """PUNA_HOME, or the platform's folder for user data."""
    if chosen := env.home():
        return chosen
    import platformdirs

    return Path(platformdirs.user_data_dir("puna", appauthor=False))


def default_url() -> str:
    return f"sqlite:///{data_folder() / 'server.db'}"


def open_database(url: str = "") -> Database:
    """Open the database at `url`, by default SQLite in the user's data, and bring its schema up to date.

    Takes sqlite:///FILE and postgresql://USER:PASSWORD@HOST:PORT/NAME. Safe when several processes do it at
    once. Raises BadInput for another URL, a missing driver or a database that a newer Puna has changed, and
    DatabaseUnavailable if it cannot be reached.
    """
    from puna.server.storage.migrate import migrate

    parsed = _parsed(url or default_url())
    is_sqlite = parsed.get_backend_name() == "sqlite"
    engine = _sqlite(parsed) if is_sqlite else _postgres(parsed)
    database = Database(engine, parsed.render_as_string(hide_password=True))
    with ExitStack() as cleanup:
        cleanup.callback(database.close)
        with database.errors():
            migrate(database.engine, database.name)
        cleanup.pop_all()
    return database


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # what was given may hold a password
        raise BadInput(
            "the database must be a URL, sqlite:///FILE or postgresql://USER@HOST/NAME; got something else"
        ) from None
    name = parsed.get_backend_name()
    if name == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise BadInput("a SQLite database needs a file, in memory it would be lost; use sqlite:///FILE")
        return parsed
    if name not in ("postgresql", "postgres"):
        raise BadInput(f"the database must be sqlite:///FILE or postgresql://…, got one of {name!r}")
    if find_spec("psycopg") is None:
        raise BadInput("PostgreSQL needs the driver psycopg; install it with `pip install 'puna[postgres]'`")
    return parsed.set(drivername="postgresql+psycopg")


def _sqlite(url: URL) -> Engine:
    path = Path(url.database or "")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseUnavailable(
            f"{path.parent} must be a folder for the database: {error.strerror}"
        ) from None
    engine = create_engine(url, connect_args={"timeout": BUSY_MS / 1000})

    # The driver's own transactions begin too late for DDL; these begin where SQLAlchemy says so.
    # https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#enabling-non-legacy-sqlite-transactional-modes-with-the-sqlite3-or-aiosqlite-driver
    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None
        _keep_log(connection)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        how = connection.get_execution_options().get("sqlite_begin", "")
        connection.exec_driver_sql(f"BEGIN {how}")

    return engine


def _keep_log(connection: sqlite3.Connection) -> None:
    """Turn the write-ahead log on. SQLite does not wait for others who do the same, whatever its timeout."""
    until = time.monotonic() + BUSY_MS / 1000
    while True:
        try:
            if connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] == "wal":
                return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
        else:
            raise sqlite3.OperationalError("its file system cannot hold a write-ahead log")
        time.sleep(0.02)


def _postgres(url: URL) -> Engine:
    # a machine that has vanished is noticed within seconds, whether it owes an answer or an acknowledgement
    limits: dict[str, Any] = {
        "connect_timeout": CONNECT_S,
        "tcp_user_timeout": 10_000,
        "keepalives_idle": 4,
        "keepalives_interval": 2,
        "keepalives_count": 3,
    }
    wanted = {name: value for name, value in limits.items() if name not in url.query}
    return create_engine(url, connect_args=wanted, pool_pre_ping=True, pool_timeout=10)


def _reason(error: SQLAlchemyError) -> str:
    """The driver's words in one line, without the statement and its parameters."""
    cause = getattr(error, "orig", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0] if lines else type(cause).__name__
