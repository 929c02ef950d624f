"""What the page shows, gathered from models, calls, accounts and the ledger."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING

from puna.engine.stats import EngineStats
from puna.server.rates import STILL, Rate
from puna.server.storage.database import DatabaseUnavailable
from puna.server.tenants.accounts import Accounts
from puna.server.tenants.keys import Key
from puna.server.tenants.limits import Used
from puna.server.tenants.queries import Filters, Total, totals
from puna.server.watch import Failures

if TYPE_CHECKING:
    from puna.server.service import Service

MOST_ROWS = 100  # of tenants and keys
_FRESH_S = 5.0  # that sums of the ledger are shown again


@dataclass(frozen=True, slots=True)
class ModelRow:
    name: str
    size: int  # bytes of its file
    context: int | None  # None: loading decides
    in_flight: int
    stats: EngineStats | None  # None: not in memory
    rate: Rate
    history: Sequence[float]  # tokens of answers a second, over the last minute
    state: str  # loaded, loading or unloaded
    parent: str | None  # of an adapter: the model that it changes, whose figures are its as well

    @property
    def where(self) -> str:
        if self.parent is not None:
            return f"adapter of {self.parent}"
        return "on disk" if self.state == "unloaded" else self.state

    @property
    def cache_share(self) -> float:
        """Of its cache blocks, those that running requests hold."""
        return (
            self.stats.kv_blocks_used / self.stats.kv_blocks if self.stats and self.stats.kv_blocks else 0.0
        )


@dataclass(frozen=True, slots=True)
class TenantRow:
    name: str
    in_flight: int
    today: Total | None


@dataclass(frozen=True, slots=True)
class KeyRow:
    key: Key
    used: Used


@dataclass(frozen=True, slots=True)
class Tenants:
    """What only an operator may see."""

    rows: Sequence[TenantRow]
    keys: Sequence[KeyRow]
    n_keys: int  # active ones, also those that have no row here
    problem: str = ""  # why the database says nothing


@dataclass(frozen=True, slots=True)
class Status:
    at: datetime
    is_draining: bool
    in_flight: int
    models: Sequence[ModelRow]
    failures: Sequence[Failures]  # newest first
    tenants: Tenants | None  # None: for an operator only

    @property
    def rate(self) -> Rate:
        """Of all models together; they share the machine, so their times add up."""
        rates = [row.rate for row in self.models]
        worked = sum(rate.busy for rate in rates)
        known = [rate for rate in rates if rate.of_limit is not None]
        of_limit = None
        if known and worked:
            of_limit = sum((rate.of_limit or 0.0) * rate.busy for rate in known) / worked
        return Rate(sum(r.output for r in rates), sum(r.prompt for r in rates), min(1.0, worked), of_limit)


class Statuses:
    """Of one server, for its event loop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._read_at = float("-inf")
        self._read: tuple[list[Total], list[Key], str] = ([], [], "")
        self._lock = asyncio.Lock()

    async def now(self, *, for_operator: bool) -> Status:
        service = self._service
        calls = Counter(call.model for call in service.calls)
        loaded, rates = service.models.loaded(), service.rates
        models = [
            ModelRow(
                card.name,
                card.size,
                card.context,
                calls[card.name],
                loaded[card.name].stats() if card.name in loaded else None,
                rates.rate(card.name) if card.name in loaded else STILL,
                rates.history(card.name),
                card.state,
                card.parent,
            )
            for card in service.models.cards()
        ]
        tenants = await self._tenants() if for_operator else None
        return Status(
            datetime.now(UTC),
            service.is_draining,
            service.n_in_flight,
            models,
            service.watch.failures,
            tenants,
        )

    async def _tenants(self) -> Tenants:
        async with self._lock:  # one asks the database, whoever else looks waits for its answer
            if monotonic() - self._read_at > _FRESH_S:
                self._read = await asyncio.to_thread(_read, self._service.accounts)
                self._read_at = monotonic()
        sums, keys, problem = self._read
        in_flight = Counter(call.account.tenant for call in self._service.calls)
        by_name = {total.group[0]: total for total in sums}
        names = sorted({*by_name, *in_flight}, key=lambda name: (-in_flight[name], -_weight(by_name, name)))
        limiter = self._service.accounts.limiter
        rows = [KeyRow(key, limiter.used(key.id)) for key in keys]
        rows.sort(key=lambda row: (-row.used.live, -row.used.tokens_today, row.key.tenant))
        return Tenants(
            [TenantRow(name, in_flight[name], by_name.get(name)) for name in names[:MOST_ROWS]],
            rows[:MOST_ROWS],
            len(keys),
            problem,
        )


def _weight(by_name: dict[str, Total], name: str) -> int:
    total = by_name.get(name)
    return total.prompt_tokens + total.output_tokens if total else 0


def _read(accounts: Accounts) -> tuple[list[Total], list[Key], str]:
    """Sums of today (UTC) by tenant, and the active keys."""
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    try:
        sums = totals(accounts.database, ["tenant"], Filters(since=midnight))
        return sums, accounts.keys.list(is_active=True), ""
    except DatabaseUnavailable as error:
        return [], [], str(error)
