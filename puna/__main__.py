"""Where `puna` and `python -m puna` begin.

The imports of the command take a tenth of a second. Ctrl-C in it ends as it does later, without a traceback.
"""

import sys


def start() -> int:
    """Run the command line -> exit code."""
    try:
        from puna.cli.main import main

        return main()
    except KeyboardInterrupt:  # main() has its own; this one came before
        print("\npuna: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(start())
