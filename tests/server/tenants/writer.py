"""A process that records rows as fast as it can and prints the number of each once it is acknowledged.

    python writer.py URL JOURNAL PREFIX N_TASKS

Made to be killed. With N_TASKS 0 or -1 it has a full disk instead: see `fill` and `fill_disk`.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path

from server.tenants.rows import row, stored

from puna.server.storage.database import Database, open_database
from puna.server.tenants.ledger import Ledger, LedgerUnavailable


async def write(ledger: Ledger, prefix: str, n_tasks: int) -> None:
    numbers = count()

    async def task() -> None:
        for n in numbers:
            await ledger.record(row(n, prefix))
            os.write(1, b"%d\n" % n)  # one call: the line is out, or not at all

    await asyncio.gather(*(task() for _ in range(n_tasks)))


async def fill(ledger: Ledger) -> None:
    """No file may grow any more: rows are refused; then they may: none is missing."""
    await ledger.record(row(0))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    refused = 0
    for n in range(1, 200):
        try:
            await ledger.record(row(n))
        except LedgerUnavailable:
            refused += 1
    print(f"{refused > 0} {ledger.is_writable}", flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    while not ledger.is_writable:
        await asyncio.sleep(0.01)
    await ledger.record(row(200))
    print("done", flush=True)


async def fill_disk(ledger: Ledger, database: Database, disk: Path) -> None:
    """The disk of the database is full, that of the journal is not: every row is taken, and comes back."""
    filler = (disk / "filler").open("wb", buffering=0)
    with suppress(OSError):
        while True:
            filler.write(bytes(4096))
    filler.close()
    await asyncio.gather(*(ledger.record(row(n)) for n in range(500)))
    print(ledger.n_journaled > 0, ledger.is_writable, flush=True)
    (disk / "filler").unlink()
    while ledger.n_journaled:
        await asyncio.sleep(0.02)
    assert stored(database) == [row(n) for n in range(500)]
    print(500, flush=True)


def main() -> None:
    url, journal, prefix, n_tasks = sys.argv[1:]
    database = open_database(url)
    ledger = Ledger(database, Path(journal), retry_s=0.05)
    if n_tasks == "-1":
        asyncio.run(fill_disk(ledger, database, Path(prefix)))
        ledger.close()
    elif int(n_tasks):
        asyncio.run(write(ledger, prefix, int(n_tasks)))
    else:
        asyncio.run(fill(ledger))
        ledger.close()


if __name__ == "__main__":
    main()
