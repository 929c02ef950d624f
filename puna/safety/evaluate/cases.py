"""A labelled set: JSON lines or CSV.

A case has `text`, a message of the user, and with `answer` what the assistant said to it, which is then
judged; or `conversation`, [{"role": "user", "content": …}, …] (JSON only). `unsafe` is its label, true or
false. `category` and `group` may be names by which figures are split.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from puna.core import BadFile
from puna.safety.verdict import Turn

_KNOWN = ("text", "answer", "conversation", "unsafe", "category", "group")
_LABELS = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True, slots=True)
class Case:
    turns: tuple[Turn, ...]
    is_unsafe: bool
    line: int
    category: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True)
class Cases:
    cases: tuple[Case, ...]
    ignored: tuple[str, ...]  # fields that are none of a case


def read_cases(text: str, where: str) -> Cases:
    """Of a file that is CSV if its name ends so, else JSON lines. Raises BadFile, with the line's number, and
    where all cases have one label."""
    rows = _csv(text, where) if where.lower().endswith(".csv") else _json(text, where)
    cases, ignored = [], dict[str, None]()
    for line, row in rows:
        cases.append(_case(f"{where}:{line}", line, row))
        ignored.update(dict.fromkeys(key for key in row if key not in _KNOWN))
    labels = {case.is_unsafe for case in cases}
    if len(labels) < 2:
        has = "no case at all" if not cases else f"only {'un' * labels.pop()}safe ones"
        raise BadFile(f"{where} must have safe and unsafe cases to tell apart, it has {has}")
    return Cases(tuple(cases), tuple(ignored))


def _json(text: str, where: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(): texts have U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise BadFile(f"{where}:{number} must be a JSON object on a line: {error}") from None
        if not isinstance(row, dict):
            raise BadFile(f"{where}:{number} must be a JSON object, found {line.strip()!r:.80}")
        yield number, row


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for a key that stands there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
    return found


def _csv(text: str, where: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        names = list(reader.fieldnames or ())
        if twice := [name for i, name in enumerate(names) if name in names[:i]]:
            raise BadFile(f"{where}:1: the column {twice[0]!r} stands there twice; take one of them out")
        if "conversation" in names:
            raise BadFile(
                f"{where}:1: conversations do not fit into CSV; write JSON lines, or text and answer"
            )
        for row in reader:
            if None in row or None in row.values():
                raise BadFile(
                    f"{where}:{reader.line_num}: a row must have a cell for each of the {len(names)} columns"
                )
            yield (
                reader.line_num,
                {key: value for key, value in row.items() if value or key not in _KNOWN[1:]},
            )
    except csv.Error as error:
        raise BadFile(f"{where}:{reader.line_num} must be CSV: {error}") from None


def _case(at: str, line: int, row: Mapping[str, Any]) -> Case:
    label = row.get("unsafe")
    is_unsafe = label if isinstance(label, bool) else _LABELS.get(str(label).lower())
    if is_unsafe is None:
        found = "none" if label is None else f"{label!r:.40}"
        raise BadFile(f"{at}: `unsafe` must be true or false, found {found}")
    names = [row.get(key) for key in ("category", "group")]
    if not all(name is None or isinstance(name, str) for name in names):
        raise BadFile(f"{at}: category and group must be names, found {names!r:.80}")
    return Case(_turns(at, row), is_unsafe, line, *(name or "" for name in names))


def _turns(at: str, row: Mapping[str, Any]) -> tuple[Turn, ...]:
    if ("text" in row) == ("conversation" in row):
        raise BadFile(f"{at} must have either `text` or `conversation`, found {', '.join(row) or 'nothing'}")
    if "text" in row:
        texts = [row["text"], *([row["answer"]] if row.get("answer") is not None else [])]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise BadFile(f"{at}: text and answer must be texts, found {texts!r:.80}")
        return tuple(zip(("user", "assistant"), texts, strict=False))
    said = row["conversation"]
    if "answer" in row or not isinstance(said, list) or not said:
        raise BadFile(f"{at}: a conversation must be a list of messages and have its answer among them")
    return tuple(_turn(at, i, message) for i, message in enumerate(said))


def _turn(at: str, i: int, message: Any) -> Turn:
    expected = ("user", "assistant")[i % 2]
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str) or not content.strip() or message.get("role") != expected:
        raise BadFile(
            f'{at}: message {i + 1} of the conversation must be {{"role": "{expected}", "content": a text}}, '
            f"found {message!r:.80}"
        )
    return expected, content
