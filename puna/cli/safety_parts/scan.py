"""Find what should not be in texts: hidden characters, control tokens, secrets, personal data, unsafe code.

  puna safety scan answer.txt
  puna safety scan - --kinds hidden,special < page.html

Prints file, line and column of each finding with its reason; secrets and personal data are masked. The exit
code is 1 if anything was found. Kinds: hidden (characters that cannot be seen), special (control tokens,
also disguised), secrets (keys and passwords), personal (e-mail, telephone, cards, accounts, addresses), code
(Python between fences, by bandit). All but hidden and code need the libraries of puna[safety].
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.cli.common import add_json, not_text, print_json, printable
from puna.core import BadInput

if TYPE_CHECKING:
    from puna.safety.scanners.finding import Finding

HELP = "find hidden characters, control tokens, secrets and personal data"
_KINDS = "hidden,special,secrets,personal"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("files", metavar="FILE", nargs="*", help="UTF-8 texts, or - for standard input (default: -)")
    add("--kinds", metavar="KINDS", default=_KINDS, help=f"of hidden, special, secrets, personal, code "
        f"(default: {_KINDS})")  # fmt: skip
    add("--region", metavar="COUNTRY", default="US", help="whose telephone and national numbers (US)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from puna.safety.scanners.scan import kinds_of, scan

    kinds = kinds_of(args.kinds)
    texts = {name: _text(name) for name in args.files or ["-"]}  # all are read before any is scanned
    found = {name: scan(text, kinds, args.region) for name, text in texts.items()}
    count = sum(map(len, found.values()))
    if args.json:
        findings = [_row(name, texts[name], one) for name, rows in found.items() for one in rows]
        print_json({"kinds": kinds, "region": args.region, "files": list(texts), "findings": findings})
    else:
        _print(texts, found)
        files = f" in {len(texts)} files" if len(texts) > 1 else ""
        print(f"{count or 'no'} finding{'' if count == 1 else 's'}{files}", file=sys.stderr)
    return 1 if count else 0


def _text(name: str) -> str:
    """Line ends as they are, so that places are those of the file. Raises BadInput for what is no text."""
    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{'standard input' if name == '-' else name} {not_text(error)}") from None
    except FileNotFoundError:
        raise BadInput(f"there is no file {name}") from None
    except IsADirectoryError:
        raise BadInput(f"{name} is a folder; give the files in it") from None
    except OSError as error:
        raise BadInput(f"{name:.200} cannot be read ({error.strerror}); give a file that can") from None


def _row(name: str, text: str, found: Finding) -> dict[str, Any]:
    from puna.safety.scanners.finding import place

    line, column = place(text, found.start)
    return {
        "file": name,
        "line": line,
        "column": column,
        "start": found.start,
        "end": found.end,
        "kind": found.kind,
        "rule": found.rule,
        "detail": found.detail,
    }


def _print(texts: Mapping[str, str], found: Mapping[str, Sequence[Finding]]) -> None:
    from puna.safety.scanners.finding import place

    for name, rows in found.items():
        for one in rows:
            line, column = place(texts[name], one.start)
            print(printable(f"{name}:{line}:{column}: {one.kind}/{one.rule}: {one.detail}"))
