"""Files of tenants: rows in the database, contents in one folder under ids of ours.

A client's name for a file is never part of a path; a path is made only from the id in a row that the tenant
owns. A content is whole and on the disk before its row is there. Links in the folder are never followed.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO
from uuid import uuid4

from sqlalchemy import Connection, delete, func, insert, select

from puna.core import BadInput, BadValue, DiskFull, WorkFailed
from puna.server.storage.database import Database
from puna.server.storage.pages import page
from puna.server.storage.plain import open_plain
from puna.server.storage.tables import batches, files

_log = logging.getLogger("puna.server")

RUNNING = ("validating", "in_progress", "finalizing", "cancelling")  # of batches
_ORPHAN_S = 3600  # a content without a row is left alone for so long: its upload may be under way


class TooMuch(BadInput):
    """HTTP 413: a file, or all of a tenant's, would be larger than is allowed."""


class InUse(BadInput):
    """HTTP 409: a batch still reads the file."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    id: str
    tenant: str
    filename: str
    purpose: str
    n_bytes: int
    created_at: datetime
    expires_at: datetime

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.n_bytes,
            "created_at": int(self.created_at.timestamp()),
            "expires_at": int(self.expires_at.timestamp()),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class Files:
    """The files of a server. Blocks; safe in any thread."""

    def __init__(
        self, database: Database, folder: Path, *, max_bytes: int, quota_bytes: int, keep: timedelta
    ) -> None:
        self.max_bytes = max_bytes
        self.keep = keep
        self._database = database
        self._folder = folder
        self._quota = quota_bytes
        self._lock = threading.Lock()
        self._arriving: dict[str, int] = {}  # bytes of uploads under way, by tenant

    def begin(self, tenant: str) -> Upload:
        """Raises DiskFull and WorkFailed."""
        return Upload(self, tenant, self._used(tenant))

    def _used(self, tenant: str) -> int:
        query = select(func.coalesce(func.sum(files.c.n_bytes), 0)).where(files.c.tenant == tenant)
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def arrive(self, tenant: str, n_bytes: int, used: int) -> None:
        """Count bytes of an upload before they are written; negative ones when it ends. Raises TooMuch."""
        with self._lock:
            total = self._arriving.get(tenant, 0) + n_bytes
            if n_bytes <= 0 or used + total <= self._quota:
                self._arriving[tenant] = total
                if not total:
                    del self._arriving[tenant]
                return
        raise TooMuch(
            f"all files of a tenant may have {self._quota:,} bytes, {used:,} are used and this one is too "
            "much; delete some (the operator sets file_quota_mb)"
        )

    def path(self, id: str) -> Path:
        """Where the content of a row's id lies."""
        return self._folder / id

    def open(self, id: str) -> BinaryIO:
        """The content of a row's id. Raises OSError where it is not there, or is a link."""
        return open_plain(self.path(id))

    def open_part(self, id: str, *, is_ours: bool = False) -> BinaryIO:
        """Where a content is written before it is whole. Raises DiskFull and WorkFailed."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            part = self._folder / f"{id}.part"
            if is_ours:
                part.unlink(missing_ok=True)
            return open(part, "xb")
        except OSError as error:
            raise disk_error(self._folder, error) from error

    def complete(self, id: str, part: BinaryIO) -> None:
        """Make a content durable under its id."""
        try:
            part.flush()
            os.fsync(part.fileno())
            part.close()
            os.replace(part.name, self.path(id))
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise disk_error(self._folder, error) from error

    def write(self, id: str, chunks: Iterable[bytes]) -> None:
        """A content of ours, in place of what an earlier attempt left. Raises DiskFull and WorkFailed."""
        part = self.open_part(id, is_ours=True)
        try:
            for chunk in chunks:
                part.write(chunk)
        except OSError as error:
            raise disk_error(self._folder, error) from error
        else:
            self.complete(id, part)
        finally:
            part.close()

    def add(self, file: StoredFile, key_id: str) -> None:
        """A row for a content that is there. Where others came first, drops it and raises TooMuch."""
        with self._database.write() as connection:
            insert_row(connection, file, key_id)
        if self._used(file.tenant) > self._quota:
            self.remove(file.tenant, file.id)
            raise TooMuch(
                f"all files of a tenant may have {self._quota:,} bytes, with this one they would have more; "
                "delete some (the operator sets file_quota_mb)"
            )

    def find(self, tenant: str, id: str) -> StoredFile | None:
        query = select(files).where(files.c.id == id, files.c.tenant == tenant)
        query = query.where(files.c.expires_at > datetime.now(UTC))
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _file(row)

    def list(
        self, tenant: str, purpose: str | None, after: str | None, limit: int, *, is_rising: bool
    ) -> tuple[list[StoredFile], bool] | None:
        """A page of a tenant's files; None where `after` is not there."""
        mine = select(files).where(files.c.tenant == tenant, files.c.expires_at > datetime.now(UTC))
        query = mine if purpose is None else mine.where(files.c.purpose == purpose)
        order = [files.c.created_at, files.c.id]
        with self._database.read() as connection:
            found = page(connection, query, order, files.c.id, after, limit, is_rising=is_rising, among=mine)
        return None if found is None else ([_file(row) for row in found[0]], found[1])

    def remove(self, tenant: str, id: str) -> bool:
        """Whether it was there. Raises InUse while a batch reads it."""
        with self._database.write() as connection:
            using = select(batches.c.id).where(batches.c.input_file_id == id, batches.c.status.in_(RUNNING))
            batch = connection.execute(using.limit(1)).scalar_one_or_none()
            if batch is not None:
                raise InUse(f"{id} is being read by {batch}; cancel the batch, or wait for its end")
            gone = delete(files).where(files.c.id == id, files.c.tenant == tenant)
            if connection.execute(gone).rowcount == 0:
                return False
        self.path(id).unlink(missing_ok=True)
        return True

    def sweep(self, now: datetime) -> None:
        """Forget files that have expired, but for those that a batch reads, and contents without a row."""
        in_use = select(batches.c.input_file_id).where(batches.c.status.in_(RUNNING))
        expired = (files.c.expires_at <= now) & files.c.id.not_in(in_use)
        with self._database.write() as connection:
            ids = connection.execute(delete(files).where(expired).returning(files.c.id)).scalars().all()
        for id in ids:
            self.path(id).unlink(missing_ok=True)
        if not self._folder.is_dir():
            return
        with self._database.read() as connection:
            known = set(connection.execute(select(files.c.id)).scalars())
        for path in self._folder.iterdir():
            if not path.name.startswith("file-") or path.name in known:
                continue
            with suppress(OSError):  # it has gone meanwhile, or is none of ours
                if path.lstat().st_mtime < now.timestamp() - _ORPHAN_S:
                    path.unlink()


class Upload:
    """A file that is arriving. Write, then keep; close in any case."""

    def __init__(self, files: Files, tenant: str, used: int) -> None:
        self.id = f"file-{uuid4().hex}"
        self.n_bytes = 0
        self._files = files
        self._tenant = tenant
        self._used = used
        self._part = files.open_part(self.id)
        self._is_kept = False

    def write(self, data: bytes) -> None:
        """Raises TooMuch, DiskFull and WorkFailed."""
        if self.n_bytes + len(data) > self._files.max_bytes:
            raise TooMuch(
                f"a file may have {self._files.max_bytes:,} bytes, this one has more; "
                "(the operator sets max_file_mb)"
            )
        self._files.arrive(self._tenant, len(data), self._used)
        self.n_bytes += len(data)
        try:
            self._part.write(data)
        except OSError as error:
            raise disk_error(Path(self._part.name), error) from error

    def keep(self, key_id: str, filename: str, purpose: str, keep: timedelta | None) -> StoredFile:
        """Make the file durable, and known. Raises TooMuch, DiskFull and WorkFailed."""
        now = datetime.now(UTC)
        expires = now + (keep or self._files.keep)
        file = StoredFile(self.id, self._tenant, filename, purpose, self.n_bytes, now, expires)
        self._files.complete(self.id, self._part)
        self._is_kept = True
        self._files.add(file, key_id)
        return file

    def close(self) -> None:
        self._files.arrive(self._tenant, -self.n_bytes, 0)
        self._part.close()
        if not self._is_kept:
            Path(self._part.name).unlink(missing_ok=True)


def insert_row(connection: Connection, file: StoredFile, key_id: str) -> None:
    row = {field: getattr(file, field) for field in StoredFile.__slots__}
    connection.execute(insert(files), {**row, "key_id": key_id, "status": "processed"})


def check_folder(folder: Path) -> None:
    """Make the folder of the files where it is missing. Raises BadValue where none can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadValue(
            f"files_folder must be a folder that can be written, got {str(folder)!r} ({error.strerror}); "
            "choose another one"
        ) from None


def disk_error(path: Path, error: OSError) -> DiskFull | WorkFailed:
    """What a client is told of the server's disk; where that is, is for the log."""
    import errno

    _log.error("%s cannot be written: %s", path, error.strerror)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull("the server's disk for files is full; try again later")
    return WorkFailed("the server cannot write files at the moment, its log says why; try again later")


def _file(row: Any) -> StoredFile:
    return StoredFile(**{field: getattr(row, field) for field in StoredFile.__slots__})
