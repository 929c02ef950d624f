"""Remove models from this machine. Files are deleted when no other name stands for them."""

from __future__ import annotations

import argparse

from puna.cli.common import add_json, print_json, size
from puna.core import BadInput

HELP = "remove models, or what interrupted pulls have left"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", metavar="MODEL", nargs="*", help="name, as `puna list` shows it, or source")
    parser.add_argument("--partial", action="store_true", help="delete what interrupted pulls have left")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from puna.weights import store

    if not args.models and not args.partial:
        raise BadInput("name the models to remove, or use --partial; `puna list` shows what is here")
    # All names first: a wrong one should not leave half of them removed.
    names = dict.fromkeys(store.require(model).name for model in args.models)
    freed = sum(store.remove(name) for name in names)
    if args.partial:
        freed += store.remove_partial()
    if args.json:
        print_json({"removed": list(names), "freed_bytes": freed})
    else:
        print(f"freed {size(freed)}")
    return 0
