"""The figures that the server is held to: PYTHONPATH=tests python -m serving [NAME …] [--minutes N]

Each starts servers of its own on loopback, stops by itself, and prints what it found beside what is wanted;
the exit code is 1 where one is missed. Measurements of speed want a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from serving.chaos import chaos
from serving.crowd import same_in_a_crowd
from serving.figure import Figure
from serving.guarded import guarded
from serving.overhead import idle_streams, one_stream
from serving.peers import Rival, read_rivals, throughput
from serving.prefix import prefix_cache


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m serving", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        help="overhead, idle, prefix, crowd, chaos, guarded, peers (default: all but peers)",
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--minutes", type=float, default=20, help="of chaos")
    parser.add_argument("--peers", type=Path, help="file of lines `name = command with {port}`")
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison with peers")
    args = parser.parse_args()
    known: dict[str, Callable[[Path], list[Figure]]] = {
        "overhead": lambda home: [one_stream(args.model, home)],
        "idle": lambda home: idle_streams(args.model, home),
        "prefix": lambda home: prefix_cache(args.model, home),
        "crowd": lambda home: same_in_a_crowd(args.model, home),
        "guarded": lambda home: guarded(args.model, home),
        "chaos": lambda home: chaos(args.model, home, args.minutes),
    }
    if args.peers:
        ours = Rival(
            "puna", f"{sys.executable} -m puna serve {args.model} --prefer throughput --port {{port}}"
        )
        known["peers"] = lambda home: throughput(ours, read_rivals(args.peers), (8, 32), args.rounds, 8765)
    names = args.names or list(known)
    wrong = [name for name in names if name not in known]
    if wrong:
        parser.error(f"there is no figure {wrong[0]!r}; these are: {', '.join(known)}")
    is_met = True
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            for figure in known[name](Path(folder)):
                print(figure, flush=True)
                is_met &= figure.is_met
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
