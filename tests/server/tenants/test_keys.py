from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from puna.core import BadInput, BadValue
from puna.server.storage.database import Database, DatabaseUnavailable
from puna.server.storage.tables import api_keys
from puna.server.tenants.keys import Keys
from puna.server.tenants.limits import Limits


def test_a_key_is_found_with_all_that_it_may(database: Database) -> None:
    limits = Limits(requests_per_minute=5, models=("smollm2",), priority=1)
    keys = Keys(database)
    key, secret = keys.create("ci", "acme", scopes=("admin", "inference"), limits=limits)
    assert Keys(database).find(secret) == keys.find(secret) == key
    assert key.limits == limits
    assert key.scopes == ("inference", "admin")
    assert secret.startswith("puna-")
    assert len(secret) == len("puna-") + 43  # 32 bytes
    assert key.prefix == secret[:11]
    for other in ("", "puna-", secret[:-1], secret + "x", secret.swapcase(), "\ud800", "ü"):
        assert keys.find(other) is None


def test_nothing_that_is_stored_gives_the_key_away(database: Database) -> None:
    _, secret = Keys(database).create("ci", "acme")
    with database.read() as connection:
        stored = connection.execute(select(api_keys)).one()
    assert all(secret[12:] not in str(value) for value in stored)
    assert secret.encode() not in bytes(stored.digest)


def test_revoking_works_in_other_processes_within_the_age_of_their_cache(database: Database) -> None:
    clock = [0.0]
    server = Keys(database, refresh_s=2, clock=lambda: clock[0])
    admin = Keys(database)
    key, secret = admin.create("ci", "acme")
    assert server.find(secret) == key
    revoked = admin.revoke(key.id)
    assert revoked.revoked_at is not None
    assert admin.find(secret) is None
    clock[0] = 1.9
    assert server.find(secret) == key
    clock[0] = 2.1
    assert server.find(secret) is None
    assert admin.revoke(key.prefix) == revoked  # again: the first time stands
    with pytest.raises(BadInput, match="there is no key 'key_x'"):
        admin.revoke("key_x")


def test_watching_finds_new_keys_without_asking(database: Database) -> None:
    server = Keys(database, refresh_s=0.02)
    server.watch()
    key, secret = Keys(database).create("ci", "acme")
    while server.find(secret) is None:
        time.sleep(0.01)
    Keys(database).revoke(key.id)
    while server.find(secret) is not None:
        time.sleep(0.01)
    own, secret = server.create("own", "acme")  # known at once where it was made
    assert server.find(secret) == own
    server.close()


def test_expiry(database: Database) -> None:
    now = [datetime(2026, 11, 25, tzinfo=UTC)]
    keys = Keys(database, now=lambda: now[0])
    key, secret = keys.create("ci", "acme", expires_at=now[0] + timedelta(hours=1))
    assert keys.find(secret) == key
    now[0] += timedelta(hours=1)
    assert keys.find(secret) is None
    assert key.state(now[0]) == "expired"
    assert keys.list() == [key]
    assert keys.list(is_active=True) == []
    assert keys.list("other") == []


def test_keys_outlive_the_database_for_a_while(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    keys = Keys(database, stale_s=60, clock=lambda: clock[0])
    key, secret = keys.create("ci", "acme")

    def away(self: Database) -> None:
        raise DatabaseUnavailable("away")

    monkeypatch.setattr(Database, "read", away)
    clock[0] = 59
    assert keys.find(secret) == key
    clock[0] = 61
    with pytest.raises(DatabaseUnavailable, match="does not answer"):
        keys.find(secret)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": ""}, "name must be 1 to 200 printable letters"),
        ({"tenant": "a\nb"}, "tenant must be"),
        ({"scopes": ("admn",)}, "got 'admn'; did you mean 'admin'"),
        ({"scopes": ()}, "needs a scope"),
        ({"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, "expiry must be in the future"),
    ],
)
def test_nonsense_is_refused(database: Database, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadValue, match=sentence):
        Keys(database).create(**{"name": "a", "tenant": "b", **options})  # type: ignore[arg-type]
