"""Regular expressions as a classifier: a text in which one is found is unsafe.

A file in TOML lists them:

    [[pattern]]
    name = "project names"
    pattern = '(?i)\\bproject (atlas|borealis)\\b'
    category = "confidential"

The engine is RE2: its time grows with the length of the text only, so that no pattern and no text can hang
it. Look-ahead, look-behind and back references are what it has none of, and a pattern with them is refused.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.core import BadFile, closest
from puna.safety.classifiers.texts import InThread, readable
from puna.safety.scanners.libraries import need
from puna.safety.taxonomy import slug
from puna.safety.verdict import Verdict

_FIELDS = ("name", "pattern", "category")
_MOST_MEMORY = 64 << 20  # bytes of RE2's automaton for one pattern


@dataclass(frozen=True, slots=True)
class Pattern:
    name: str
    category: str  # as a word
    compiled: Any  # RE2's


class Patterns(InThread):
    """The patterns of one file."""

    def __init__(self, path: Path) -> None:
        """Raises BadFile for what is no such file, BadInput where google-re2 is not installed."""
        self.patterns = read(path)
        self.categories = frozenset(one.category for one in self.patterns)
        super().__init__(f"patterns:{path.name}", self._verdicts)

    def _verdicts(self, texts: Sequence[str]) -> Sequence[Verdict]:
        return [self._verdict(text) for text in texts]

    def _verdict(self, text: str) -> Verdict:
        text = readable(text)
        found = [one.category for one in self.patterns if one.compiled.search(text)]
        return Verdict(bool(found), float(bool(found)), tuple(dict.fromkeys(found)))


def read(path: Path) -> Sequence[Pattern]:
    """The patterns of a file, in their order. Raises BadFile, and BadInput without google-re2."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadFile(f"patterns must be a file in TOML, {path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadFile(f"{path} must be TOML with [[pattern]] tables, found: {error}") from None
    rows = data.get("pattern")
    if not isinstance(rows, list) or not rows or set(data) != {"pattern"}:
        raise BadFile(f"{path} must have [[pattern]] tables and nothing else, found {sorted(data) or 'none'}")
    return [_pattern(f"{path}, pattern {i}", row) for i, row in enumerate(rows, 1)]


def _pattern(where: str, row: object) -> Pattern:
    if not isinstance(row, Mapping):
        raise BadFile(f"{where} must be a table with {', '.join(_FIELDS)}")
    for name in row:
        if name not in _FIELDS:
            raise BadFile(f"{where} has an unknown field {name!r}{closest(name, _FIELDS)}")
    for name in _FIELDS:
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise BadFile(f"{where} must have a text as {name}, got {row.get(name)!r:.60}")
    if not slug(row["category"]):
        raise BadFile(f"{where}: category must have a letter or digit, got {row['category']!r:.60}")
    re2 = need("re2", "google-re2", "a list of patterns")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MOST_MEMORY
    try:
        compiled = re2.compile(row["pattern"], options)
    except re2.error as error:
        raise BadFile(
            f"{where} ({row['name']!r:.60}) must be a regular expression of RE2, without look-around and "
            f"back references: {_said(error)}"
        ) from None
    if compiled.search(""):
        raise BadFile(
            f"{where} ({row['name']!r:.60}) must not match the empty text: it would match every one"
        )
    return Pattern(row["name"], slug(row["category"]), compiled)


def _said(error: BaseException) -> str:
    said = error.args[0] if error.args else error
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
