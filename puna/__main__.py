"""`python -m puna` is `puna`."""

import sys

from puna.cli.main import main

sys.exit(main())
