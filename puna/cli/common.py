"""What several commands share: the model argument, progress, sizes, tables, JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from puna import env
from puna.core import NotPulled

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from puna.model.catalog import CatalogEntry


def add_model(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """The MODEL argument, optional where there is a default, and --yes, for `model_path`."""
    text = "name, .gguf file, folder or source" + (f" (default: {default})" if default else "")
    parser.add_argument("model", metavar="MODEL", nargs="?" if default else None, default=default, help=text)
    parser.add_argument("-y", "--yes", action="store_true", help="pull a missing model without asking")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def model_path(args: argparse.Namespace) -> Path:
    """The file of `args.model`; if it is not here, pulls it with --yes or after asking on a terminal.

    Raises NotPulled where there is nobody to ask, and what `store.resolve` and `store.pull` raise.
    """
    from puna.weights import store

    try:
        return store.resolve(args.model)
    except NotPulled as missing:
        if not (args.yes or _agreed(missing.model)):
            raise
        with ProgressBar() as bar:
            return store.pull(missing.model, bar).path


def _agreed(model: str) -> bool:
    """Ask on a terminal; False in a pipe."""
    from puna.model import catalog

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    entry = catalog.get(model)
    what = f" ({_about(entry)}, licence {entry.licence})" if entry else ""
    print(
        f"{model} is not on this machine yet{what}. Pull it? [Y/n] ",
        end="",
        file=sys.stderr,
        flush=True,
    )
    answer = sys.stdin.readline()
    return answer != "" and answer.strip().lower() in ("", "y", "yes")


def _about(entry: CatalogEntry) -> str:
    """The size of what a pull brings."""
    from puna.weights.footprint import weight_bytes

    if entry.source and entry.source.size:
        return size(entry.source.size)
    form = entry.weights.partition("-")[0]  # of int4 there are several kinds
    return f"about {size(weight_bytes(entry.config, 'q8_0' if form == 'int8' else form))}"


class ProgressBar:
    """A `weights.fetch.Progress`: bars on a terminal, a line for each thing in a pipe, all on stderr."""

    def __init__(self) -> None:
        self._what = ""
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressBar:
        if sys.stderr.isatty():
            self._bar = _rich_bar()
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        begun = what != self._what
        self._what = what
        if self._bar is None:
            if begun:
                print(what, file=sys.stderr, flush=True)
            return
        if begun or self._task is None:
            self._task = self._bar.add_task(what, total=total)
        self._bar.update(self._task, completed=done, total=total)


def _rich_bar() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, no_color=env.no_color()),
    )


def not_text(error: UnicodeDecodeError) -> str:
    """What is wrong with input that cannot be decoded, to go on after its name."""
    byte = error.object[error.start]
    found = f"found the byte 0x{byte:02x} ({error.reason})"
    return f"must be {error.encoding} text, {found}; convert it, as iconv does"


def size(n_bytes: float) -> str:
    """Bytes for people, in decimal units: 98.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def billions(n: float) -> str:
    """Parameters for people: 70.6 B."""
    return f"{n / 1e9:.3g} B" if n < 1e12 else f"{n / 1e12:.3g} T"


def print_json(value: Mapping[str, Any]) -> None:
    """The one object that `--json` promises."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns aligned to the left, as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def printable(text: str) -> str:
    """Control characters as escapes: text of a foreign file must not steer the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def print_facts(facts: Mapping[str, object]) -> None:
    """One `name  value` a line; a value of None is left out."""
    shown = {name: printable(str(value)) for name, value in facts.items() if value is not None}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        print(f"{name:<{width}}  {value}")
