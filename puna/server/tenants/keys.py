"""API keys: `puna-` and 32 random bytes. Only their SHA-256 is stored, enough for so many random bits.

A running server holds all keys in memory and asks every `refresh_s` whether one was made or revoked, so that
looking a key up never waits for the database.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, insert, select, update

from puna.core import BadInput, BadValue, closest
from puna.server.storage.database import Database, DatabaseUnavailable
from puna.server.storage.tables import api_keys as table
from puna.server.tenants.limits import Limits

SCOPES = ("inference", "admin")
_PREFIX = len("puna-") + 6  # shown, so that a key can be recognised
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key; the key itself is known to its owner alone."""

    id: str
    prefix: str
    name: str
    tenant: str
    scopes: tuple[str, ...]
    limits: Limits
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def state(self, now: datetime) -> str:
        """active, expired or revoked."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"

    def to_columns(self) -> dict[str, Any]:
        """The key as the table has it, without its digest."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "scopes": list(self.scopes), "limits": self.limits.to_json()}

    def to_json(self) -> dict[str, Any]:
        """What may be shown of it, with times in ISO 8601, and its state."""
        shown = {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in self.to_columns().items()
        }
        return {**shown, "state": self.state(datetime.now(UTC))}


class Keys:
    """The keys of a database.

    `find` asks the database if what it knows is older than `refresh_s` seconds; after `watch()` a thread does
    that and `find` never blocks. While the database is away, keys stay what they were for `stale_s` seconds.
    """

    def __init__(
        self,
        database: Database,
        *,
        refresh_s: float = 1.0,
        stale_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._refresh_s = refresh_s
        self._stale_s = stale_s
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._known: Mapping[bytes, Sequence[tuple[bytes, Key]]] = {}  # by the first bytes of digests
        self._by_id: Mapping[str, Key] = {}
        self._seen: tuple[int, int] | None = None  # keys and revoked ones when they were read
        self._read_at: float | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def create(
        self,
        name: str,
        tenant: str,
        *,
        scopes: Sequence[str] = ("inference",),
        limits: Limits | None = None,
        expires_at: datetime | None = None,
    ) -> tuple[Key, str]:
        """Make a key -> what is known of it, and the key itself, which cannot be had again.

        Raises BadValue, DatabaseUnavailable.
        """
        now = self._now()
        _check(name, tenant, scopes, expires_at, now)
        secret = "puna-" + secrets.token_urlsafe(32)
        key = Key(
            id=f"key_{secrets.token_hex(8)}",
            prefix=secret[:_PREFIX],
            name=name,
            tenant=tenant,
            scopes=tuple(scope for scope in SCOPES if scope in scopes),
            limits=limits or Limits(),
            created_at=now,
            expires_at=expires_at,
            revoked_at=None,
        )
        with self._database.write() as connection:
            connection.execute(insert(table), {**key.to_columns(), "digest": _digest(secret)})
        self._try_refresh()
        return key, secret

    def list(self, tenant: str | None = None, *, is_active: bool = False) -> list[Key]:
        """In the order of their making; with `is_active` without the expired and revoked."""
        query = select(table).order_by(table.c.created_at, table.c.id)
        if tenant is not None:
            query = query.where(table.c.tenant == tenant)
        with self._database.read() as connection:
            found = [_key(row) for row in connection.execute(query)]
        return [key for key in found if not is_active or key.state(self._now()) == "active"]

    def revoke(self, name: str) -> Key:
        """Revoke the key with this id or prefix, for good. Raises BadInput if there is no such one."""
        with self._database.write() as connection:
            query = select(table).where((table.c.id == name) | (table.c.prefix == name))
            found = connection.execute(query).all()
            if len(found) != 1:
                raise BadInput(
                    f"there is no key {name!r}; `puna keys list` shows those that there are"
                    if not found
                    else f"{len(found)} keys begin with {name!r}; give the id, as `puna keys list` shows it"
                )
            key = _key(found[0])
            if key.revoked_at is None:
                change = update(table).where(table.c.id == key.id).values(revoked_at=self._now())
                connection.execute(change.where(table.c.revoked_at.is_(None)))
            key = _key(connection.execute(select(table).where(table.c.id == key.id)).one())
        self._try_refresh()
        return key

    def find(self, secret: str) -> Key | None:
        """The active key that this is, or None. Raises DatabaseUnavailable once nothing recent is known."""
        self._check_age()
        digest = _digest(secret)
        # The place in the table tells nothing of a key, only of its digest's first bytes; the rest of the
        # digest is compared in constant time.
        for stored, key in self._known.get(digest[:8], ()):
            if hmac.compare_digest(stored, digest) and key.state(self._now()) == "active":
                return key
        return None

    def find_id(self, id: str) -> Key | None:
        """The active key with this id, or None. Raises DatabaseUnavailable once nothing recent is known."""
        self._check_age()
        key = self._by_id.get(id)
        return key if key is not None and key.state(self._now()) == "active" else None

    def _check_age(self) -> None:
        if self._thread is None and self._age() > self._refresh_s:
            self._try_refresh()
        if self._age() > self._stale_s:
            raise DatabaseUnavailable("the database of API keys does not answer; try again later")

    def watch(self) -> None:
        """Read the keys, and go on reading in a thread until close(). Raises DatabaseUnavailable."""
        self.refresh()
        self._thread = threading.Thread(target=self._watch, name="puna-keys", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def refresh(self) -> None:
        """Read the keys again if any was made or revoked. Raises DatabaseUnavailable."""
        with self._lock:
            began_at = self._clock()
            with self._database.read() as connection:
                counts = select(func.count(), func.count(table.c.revoked_at)).select_from(table)
                seen = tuple(connection.execute(counts).one())
                if seen != self._seen:  # keys are never changed otherwise, nor deleted
                    rows = connection.execute(select(table)).all()
                    self._known = _by_digest(rows)
                    self._by_id = {key.id: key for same in self._known.values() for _, key in same}
                    self._seen = (len(rows), sum(row.revoked_at is not None for row in rows))
            self._read_at = began_at

    def _age(self) -> float:
        return float("inf") if self._read_at is None else self._clock() - self._read_at

    def _watch(self) -> None:
        while not self._closing.wait(self._refresh_s):
            self._try_refresh()

    def _try_refresh(self) -> None:
        try:
            self.refresh()
        except DatabaseUnavailable as error:
            _log.warning("API keys stay as they were: %s", error)


def _by_digest(rows: Sequence[Any]) -> dict[bytes, list[tuple[bytes, Key]]]:
    found: dict[bytes, list[tuple[bytes, Key]]] = {}
    for row in rows:
        digest = bytes(row.digest)
        found.setdefault(digest[:8], []).append((digest, _key(row)))
    return found


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _check(name: str, tenant: str, scopes: Sequence[str], expires_at: datetime | None, now: datetime) -> None:
    for what, text in (("name", name), ("tenant", tenant)):
        if not (0 < len(text) <= 200 and text.isprintable()):
            raise BadValue(f"{what} must be 1 to 200 printable letters, got {text!r:.80}")
    for scope in scopes:
        if scope not in SCOPES:
            raise BadValue(f"scopes must be of {', '.join(SCOPES)}, got {scope!r}{closest(scope, SCOPES)}")
    if not scopes:
        raise BadValue(f"a key needs a scope, one or more of {', '.join(SCOPES)}")
    if expires_at is not None and expires_at <= now:
        raise BadValue(f"expiry must be in the future, got {expires_at:%Y-%m-%d %H:%M} UTC")


def _key(row: Any) -> Key:
    return Key(
        id=row.id,
        prefix=row.prefix,
        name=row.name,
        tenant=row.tenant,
        scopes=tuple(row.scopes),
        limits=Limits.from_json(row.limits),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
