"""A page as sections of sentences and tables, and its two forms. Knows nothing of Llamas.

Every text may come from a file of somebody else: HTML is escaped by Jinja, Markdown here, and only addresses
of the web become links.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")
_UNSAFE = str.maketrans({"(": "%28", ")": "%29", " ": "%20", "|": "%7C", "<": "%3C", ">": "%3E", '"': "%22"})


@dataclass(frozen=True, slots=True)
class Bar:
    """Where a range begins, its middle, and what is left behind its end, as shares of the width."""

    low: float
    middle: float
    rest: float


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    url: str = ""
    mark: str = ""  # a verdict or a state, for its colour
    bar: Bar | None = None

    @property
    def link(self) -> str:
        """The address if it is one of the web, else empty."""
        try:
            parts = urlsplit(self.url.strip())
        except ValueError:
            return ""
        return self.url.strip() if parts.scheme in ("http", "https") and parts.netloc else ""


@dataclass(frozen=True, slots=True)
class Table:
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numbers: frozenset[int] = frozenset()  # columns that are set to the right
    wide: frozenset[int] = frozenset()  # columns of sentences
    title: str = ""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.head) for row in self.rows), self.head


@dataclass(frozen=True, slots=True)
class Section:
    key: str
    title: str
    sentences: tuple[str, ...]
    tables: tuple[Table, ...] = ()
    is_list: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    title: str
    day: date
    notes: tuple[str, ...]  # what a reader must know first: what is stale
    sections: tuple[Section, ...]


def cells(*values: str | Cell) -> tuple[Cell, ...]:
    return tuple(value if isinstance(value, Cell) else Cell(value) for value in values)


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    numbers: Sequence[str] = (),
    wide: Sequence[str] = (),
    title: str = "",
) -> Table:
    """`numbers` and `wide` name columns."""
    right, long = (frozenset(i for i, name in enumerate(head) if name in some) for some in (numbers, wide))
    return Table(tuple(head), tuple(cells(*row) for row in rows), right, long, title)


def plain(page: Page) -> dict[str, Any]:
    """For JSON: texts and addresses, without what is for looks only."""
    return {
        "title": page.title,
        "day": f"{page.day}",
        "notes": list(page.notes),
        "sections": [
            {
                "key": section.key,
                "title": section.title,
                "sentences": list(section.sentences),
                "tables": [
                    {
                        "title": one.title,
                        "head": list(one.head),
                        "rows": [[{"text": cell.text, "url": cell.link} for cell in row] for row in one.rows],
                    }
                    for one in section.tables
                ],
            }
            for section in page.sections
        ],
    }


def _escaped(text: str) -> str:
    return _SPECIAL.sub(lambda found: "\\" + found[0], " ".join(text.split()))


def _cell(cell: Cell) -> str:
    text = _escaped(cell.text)
    if cell.link:
        text = f"[{text}]({cell.link.translate(_UNSAFE)})"
    return f"**{text}**" if cell.mark in ("wrong", "stale", "ended") else text


def markdown(page: Page) -> str:
    """GitHub's kind, for its tables."""
    parts = [f"# {_escaped(page.title)}", f"{page.day}"]
    parts += ["\n".join(f"> - {_escaped(note)}" for note in page.notes)] if page.notes else []
    for section in page.sections:
        parts.append(f"## {_escaped(section.title)}")
        said = [_escaped(sentence) for sentence in section.sentences]
        parts += ["\n".join(f"- {one}" for one in said)] if section.is_list else said
        for one in section.tables:
            parts += [f"### {_escaped(one.title)}"] if one.title else []
            rule = ["---:" if i in one.numbers else "---" for i in range(len(one.head))]
            lines = [[_escaped(name) for name in one.head], rule, *([_cell(c) for c in r] for r in one.rows)]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


@cache
def _templates() -> Environment:
    found = Environment(
        loader=PackageLoader("puna.brief"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["percent"] = "{:.2%}".format
    return found


def html(page: Page) -> str:
    """One file with its style, without scripts, and nothing that is fetched."""
    return _templates().get_template("page.html").render(page=page) + "\n"
