"""Sums and lists against Python's own sums over the same rows."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta

import pytest
from server.tenants.rows import BEGIN, row

from puna.core import BadValue
from puna.server.storage.database import Database
from puna.server.tenants.ledger import insert
from puna.server.tenants.prices import dollars
from puna.server.tenants.queries import Filters, export_csv, moment, page, tokens_today, totals
from puna.server.tenants.usage import Usage

ROWS = [row(60 * n) for n in range(250)]  # over midnight
FILTERS = [
    Filters(),
    Filters(since=BEGIN + timedelta(hours=1)),
    Filters(since=ROWS[10].created_at, until=ROWS[200].created_at, tenant="acme"),
    Filters(key="key_0", model="smollm2"),
    Filters(tenant="nobody"),
]


@pytest.fixture
def filled(database: Database) -> Database:
    with database.write() as connection:
        insert(connection, ROWS)
    return database


def chosen(filters: Filters) -> list[Usage]:
    return [
        each
        for each in ROWS
        if (filters.since is None or each.created_at >= filters.since)
        and (filters.until is None or each.created_at < filters.until)
        and filters.tenant in (None, each.tenant)
        and filters.key in (None, each.key_id)
        and filters.model in (None, each.model)
    ]


def summed(rows: Sequence[Usage], by: Sequence[str]) -> dict[tuple[str, ...], list[int]]:
    found: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0] * 5)
    for each in rows:
        names = {"day": str(each.created_at.date()), "key": each.key_id or ""}
        group = tuple(names.get(name) if name in names else getattr(each, name) for name in by)
        counts = (1, each.prompt_tokens, each.cached_tokens, each.output_tokens, each.cost_nano)
        found[group] = [a + b for a, b in zip(found[group], counts, strict=True)]
    return dict(found)


def test_sums_are_pythons(filled: Database) -> None:
    for filters in FILTERS:
        for by in (["tenant"], ["key", "day"], ["model", "status", "endpoint"], []):
            found = totals(filled, by, filters)
            if not by and not chosen(filters):
                assert (found[0].requests, found[0].cost_nano) == (0, 0)
                continue
            sums = {
                t.group: [t.requests, t.prompt_tokens, t.cached_tokens, t.output_tokens, t.cost_nano]
                for t in found
            }
            assert sums == summed(chosen(filters), by)
    whole = totals(filled, ["tenant", "day"])
    assert [totals(filled, ["tenant", "day"], limit=1, offset=n)[0] for n in range(len(whole))] == whole
    with pytest.raises(BadValue, match="got 'tenat'; did you mean 'tenant'"):
        totals(filled, ["tenat"])


def test_pages_are_all_rows_once(filled: Database) -> None:
    for filters in FILTERS:
        found: list[Usage] = []
        while batch := page(filled, filters, limit=37, after=found[-1].request_id if found else None):
            found += batch
        assert found == chosen(filters)
    with pytest.raises(BadValue, match="request id"):
        page(filled, after="nothing")


def test_csv_has_every_row(filled: Database) -> None:
    for filters in FILTERS:
        found = list(csv.DictReader(io.StringIO("".join(export_csv(filled, filters)), newline="")))
        expected = chosen(filters)
        assert [line["request_id"] for line in found] == [each.request_id for each in expected]
        assert [line["tenant"] for line in found] == [each.tenant for each in expected]
        assert [line["cost_usd"] for line in found] == [dollars(each.cost_nano) for each in expected]
        assert [moment(line["created_at"]) for line in found] == [each.created_at for each in expected]


def test_tokens_of_the_day_by_key(filled: Database) -> None:
    now = BEGIN + timedelta(hours=3)
    expected: dict[str, int] = defaultdict(int)
    for each in ROWS:
        if each.key_id and each.created_at.date() == now.date():
            expected[each.key_id] += each.prompt_tokens - each.cached_tokens + each.output_tokens
    assert tokens_today(filled, now) == expected
    assert tokens_today(filled, now + timedelta(days=9)) == {}


def test_times() -> None:
    assert moment("2026-11-24T22:00:00Z") == moment("2026-11-25T00:00:00+02:00") == BEGIN
    assert moment("2026-11-24") == BEGIN - timedelta(hours=22)
    with pytest.raises(BadValue, match="must be like 2026-12-01"):
        moment("yesterday")
