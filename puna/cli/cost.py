"""What tokens cost and earn: serving, training, the market, margins, experiments.

  puna cost serve llama-3.3-70b-instruct --accelerator h100 --n 2 --weights fp8 --cache fp8
  puna cost compare llama-3.3-70b-instruct --accelerator b200 --utilisation 0.3

The commands of this group follow; `puna cost COMMAND --help` explains each. Figures of others stand in dated
data files with their sources; nothing is fetched.
"""

from __future__ import annotations

import argparse

from puna.core import BadInput, closest

HELP = "say what tokens cost and earn"
GROUP = "costs"


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
        raise BadInput(f"say which: puna cost {'|'.join(known)}")
    raise BadInput(f"`puna cost` has no command {args.command!r}{closest(args.command, known)}")
