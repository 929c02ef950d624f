"""What is in texts that should not be there, and how well classifiers tell.

The commands of this group follow; `puna safety COMMAND --help` explains each.
"""

from __future__ import annotations

import argparse

from puna.core import BadInput, closest

HELP = "scan texts for what should not be in them, and measure classifiers"
GROUP = "safety_parts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from puna.cli.main import commands

    known = commands(GROUP)
    parser.add_argument("command", metavar="COMMAND", nargs="?", help=", ".join(known))
    parser.epilog = "\n".join(f"  {name:<10}{text}" for name, text in known.items())


def run(args: argparse.Namespace) -> int:
    """Only what is no command of the group comes here."""
    from puna.cli.main import commands

    known = list(commands(GROUP))
    if args.command is None:
        raise BadInput(f"say which: puna safety {'|'.join(known)}")
    raise BadInput(f"`puna safety` has no command {args.command!r}{closest(args.command, known)}")
