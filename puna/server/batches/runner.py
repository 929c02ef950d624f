"""Which batches this server runs, and the sweeping of what has been kept long enough."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

from sqlalchemy import delete

from puna.core import PunaError
from puna.server.batches.inside import App
from puna.server.batches.run import BatchRun
from puna.server.storage import batches
from puna.server.storage.batches import Batch, Lost
from puna.server.storage.tables import conversations, responses

if TYPE_CHECKING:
    from puna.server.service import Service

LEASE_S = 10.0  # a server that has not been heard of for so long is dead, and others run its batches
POLL_S = 2.0
SWEEP_S = 3600.0
_MOST = 64  # batches at a time
_log = logging.getLogger(__name__)


class Runner:
    """Runs batches of the database on one server, for its event loop."""

    def __init__(self, app: App, service: Service) -> None:
        self.id = uuid4().hex
        self.app = app
        self.service = service
        self.slots = asyncio.Semaphore(service.config.batch_requests)
        self._runs: dict[str, BatchRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._strays: set[str] = set()  # batches that are ours, but ended early
        self._loop: asyncio.Task[None] | None = None
        self._sweep_at = 0.0

    def lease(self) -> datetime:
        """Until when this server owns what it takes or renews now."""
        return datetime.now(UTC) + timedelta(seconds=LEASE_S)

    def start(self) -> None:
        self._loop = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop what runs, and leave it to other servers, or to this one when it is back."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])
        for run in self._runs.values():
            run.leave()
        if self._tasks:
            await asyncio.wait(self._tasks)
        try:
            await asyncio.to_thread(batches.release, self.service.accounts.database, self.id)
        except PunaError as error:
            _log.warning("batches are left to other servers in %g s: %s", LEASE_S, error)

    def adopt(self, batch: Batch) -> None:
        """Run a batch that this server owns."""
        run = BatchRun(self, batch)
        self._runs[run_id := batch["id"]] = run
        task = asyncio.create_task(run.run())
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._runs.pop(run_id, None)
            if not task.cancelled() and (error := task.exception()) is not None:
                _log.error("batch %s failed on %s", run_id, type(error).__name__, exc_info=error)
                self._give_up(run_id, f"the server failed on {type(error).__name__}; see its log")

        task.add_done_callback(ended)

    def _give_up(self, id: str, message: str) -> None:
        """Not to be tried again and again: nobody knows why it failed."""
        errors = [{"code": "server_error", "line": None, "message": message, "param": None}]

        async def fail() -> None:
            with suppress(Lost, PunaError):
                await asyncio.to_thread(batches.fail, self.service.accounts.database, self.id, id, errors)

        task = asyncio.create_task(fail())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self, id: str) -> None:
        """Stop a batch at once if it runs here; elsewhere that is noticed in POLL_S seconds."""
        if id in self._runs:
            self._runs[id].cancel()

    async def _watch(self) -> None:
        while True:
            try:
                await self._tick()
            except PunaError as error:
                _log.warning("batches wait: %s", error)
            await asyncio.sleep(POLL_S)

    async def _tick(self) -> None:
        database = self.service.accounts.database
        ours = await asyncio.to_thread(batches.renew, database, self.id, self.lease())
        for id, run in self._runs.items():
            if ours.get(id) == "cancelling":
                run.cancel()
        strays = {id for id in ours if id not in self._runs}
        for id in strays & self._strays:
            await asyncio.to_thread(batches.release, database, self.id, id)
        self._strays = strays
        if not self.service.is_draining and len(self._runs) < _MOST:
            names = [card.name for card in self.service.models.cards()]
            until, most = self.lease(), _MOST - len(self._runs)
            for batch in await asyncio.to_thread(batches.claim, database, self.id, names, until, most):
                self.adopt(batch)
        now = asyncio.get_running_loop().time()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            await asyncio.to_thread(sweep, self.service)


def sweep(service: Service) -> None:
    """Forget what has been kept for `keep_stored_days`; conversations from when they were last added to."""
    now = datetime.now(UTC)
    before = now - timedelta(days=service.config.keep_stored_days)
    database = service.accounts.database
    with database.write() as connection:
        connection.execute(delete(responses).where(responses.c.created_at < before))
        connection.execute(delete(conversations).where(conversations.c.updated_at < before))
    batches.sweep(database, before)
    service.files.sweep(now)
