"""What the audits of safety checks hold: how often what was done, and the calls it was done to."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import func, select

from puna.core import BadValue, closest
from puna.server.storage.database import Database
from puna.server.storage.tables import audits as table
from puna.server.storage.tables import usage
from puna.server.tenants.audit import ACTIONS, Audit
from puna.server.tenants.queries import Filters, filtered
from puna.server.tenants.usage import Usage, from_columns

_COLUMNS = [field.name for field in fields(Audit)]


@dataclass(frozen=True, slots=True)
class Audited:
    """A call and what was found in it."""

    usage: Usage
    audit: Audit

    def to_json(self) -> dict[str, Any]:
        """Whose call it was, when, and what was done; no text of it is kept anywhere."""
        used = self.usage
        found = {name: getattr(self.audit, name) for name in _COLUMNS}
        return {
            "request_id": used.request_id,
            "created_at": used.created_at.isoformat(),
            "tenant": used.tenant,
            "key_id": used.key_id,
            "model": used.model,
            "endpoint": used.endpoint,
            "status": used.status,
            **found,
        }


def check_action(action: str | None) -> None:
    """Raise BadValue for what is none."""
    if action is not None and action not in ACTIONS:
        raise BadValue(
            f"action must be one of {', '.join(ACTIONS)}, got {action!r}{closest(action, ACTIONS)}"
        )


def counts(database: Database, filters: Filters | None = None) -> dict[tuple[str, str, str], int]:
    """How many calls, by tenant, policy and action, in the order of these."""
    keys = (usage.c.tenant, table.c.policy, table.c.action)
    query = select(*keys, func.count()).join_from(usage, table, usage.c.request_id == table.c.request_id)
    query = filtered(query, filters).group_by(*keys).order_by(*keys)
    with database.read() as connection:
        return {(row[0], row[1], row[2]): int(row[3]) for row in connection.execute(query)}


def latest(
    database: Database, filters: Filters | None = None, *, action: str | None = None, limit: int = 100
) -> list[Audited]:
    """The latest audited calls, newest first. Raises BadValue for an action that is none."""
    check_action(action)
    columns = [table.c[name] for name in _COLUMNS]
    query = select(usage, *columns).join_from(usage, table, usage.c.request_id == table.c.request_id)
    query = filtered(query, filters)
    if action is not None:
        query = query.where(table.c.action == action)
    query = query.order_by(usage.c.created_at.desc(), usage.c.request_id).limit(limit)
    with database.read() as connection:
        return [
            Audited(from_columns(row), Audit(**{name: getattr(row, name) for name in _COLUMNS}))
            for row in connection.execute(query)
        ]
