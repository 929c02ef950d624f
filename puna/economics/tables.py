"""CSV with a header, read strictly: every row has every column and no more."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from puna.core import BadFile


def table(text: str, where: str) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """Names of the columns, and rows with their line numbers. Raises BadFile, the iterator as well."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        names = list(reader.fieldnames or ())
    except csv.Error as error:
        raise BadFile(f"{where} must be CSV: {error}") from None
    if len(set(names)) < len(names):
        raise BadFile(f"{where} has two columns of one name: {', '.join(names)}")
    return names, _rows(reader, where)


def _rows(reader: csv.DictReader[str], where: str) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        for row in reader:
            if None in row or None in row.values():
                raise BadFile(f"{where}:{reader.line_num}: a row must have a cell for every column")
            yield reader.line_num, row
    except csv.Error as error:
        raise BadFile(f"{where}:{reader.line_num} must be CSV: {error}") from None
