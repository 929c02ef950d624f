"""`puna`, with servers that are believed dead sooner than they are in real life."""

from __future__ import annotations

import sys

from puna.cli.main import main
from puna.server.batches import runner

runner.LEASE_S, runner.POLL_S = 1.0, 0.1

if __name__ == "__main__":
    sys.exit(main())
