from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from server.postgres import Postgres

from puna.server.storage.database import Database, open_database

_number = count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    memory = Path("/dev/shm")  # its syncs cost nothing, and what a killed process wrote stays there, too
    place = memory if os.access(memory, os.W_OK) else None
    with TemporaryDirectory(prefix="puna-postgres-", dir=place) as folder:
        server = Postgres(Path(folder))
        server.start()
        yield server
        server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new, empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/puna.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.create(f"puna{next(_number)}")


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = open_database(url)
    yield opened
    opened.close()
