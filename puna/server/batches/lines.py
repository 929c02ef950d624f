"""The lines of a batch's file: {"custom_id", "method": "POST", "url", "body"}, one a line (OpenAI's form)."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.server.storage.plain import open_plain
from puna.server.strict import loads

MOST_LINES = 50_000
_MOST_ID = 512  # letters of a custom_id
_FIELDS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, slots=True)
class Line:
    number: int  # of the line, from 1
    custom_id: str
    body: dict[str, Any]
    content: bytes  # the body as JSON

    @property
    def problem(self) -> str | None:
        """Why its body cannot be answered in a batch, whatever the route says of it."""
        for name in ("stream", "background"):
            if self.body.get(name):
                return f"{name} must be false in a batch, found {self.body[name]!r:.80}"
        return None


class BadLine(Exception):
    """What is wrong with a line; `param` is the field."""

    def __init__(self, number: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.number = number
        self.param = param

    def to_json(self) -> dict[str, Any]:
        return {"code": "invalid_line", "line": self.number, "message": str(self), "param": self.param}


def raw_lines(path: Path, most_bytes: int) -> Generator[tuple[int, bytes], None, None]:
    """The lines that are not empty, with their numbers. A longer one than `most_bytes` comes cut, by a byte
    too long, so that `parsed` refuses it. Raises OSError."""
    with open_plain(path) as file:
        number = 0
        while line := file.readline(most_bytes + 1):
            number += 1
            if len(line) > most_bytes:
                yield number, line
                return
            if line.strip():
                yield number, line


def parsed(number: int, line: bytes, endpoint: str, most_bytes: int) -> Line:
    """Raises BadLine."""
    if len(line) > most_bytes:
        raise BadLine(number, f"a line may have {most_bytes:,} bytes, this one has more")
    try:
        found = loads(line)
        content = json.dumps(found["body"] if isinstance(found, dict) and "body" in found else None)
    except (ValueError, RecursionError) as error:
        raise BadLine(number, f"a line must be JSON, this one is not: {error}") from None
    if not isinstance(found, dict):
        raise BadLine(number, f"a line must be a JSON object, found {found!r:.80}")
    for name in found:
        if name not in _FIELDS:
            raise BadLine(number, f"a line has {', '.join(_FIELDS)}, found {name!r:.80} as well", name)
    custom_id, body = found.get("custom_id"), found.get("body")
    if not (isinstance(custom_id, str) and 0 < len(custom_id) <= _MOST_ID):
        raise BadLine(
            number,
            f"custom_id must be a text of 1 to {_MOST_ID} letters, found {custom_id!r:.80}",
            "custom_id",
        )
    if not _is_storable(custom_id):
        raise BadLine(number, "custom_id must not have NUL or half a surrogate pair", "custom_id")
    if found.get("method") != "POST":
        raise BadLine(number, f"method must be POST, found {found.get('method')!r:.80}", "method")
    if found.get("url") != endpoint:
        raise BadLine(
            number, f"url must be the batch's endpoint {endpoint}, found {found.get('url')!r:.80}", "url"
        )
    if not isinstance(body, dict):
        raise BadLine(number, f"body must be an object, found {body!r:.80}", "body")
    if not isinstance(body.get("model"), str):
        raise BadLine(number, f"body.model must be a name, found {body.get('model')!r:.80}", "body.model")
    return Line(number, custom_id, body, content.encode())


def _is_storable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


@dataclass(slots=True)
class Checked:
    """What checking a whole file found."""

    n_lines: int
    models: list[str]
    errors: list[dict[str, Any]]


def check(path: Path, endpoint: str, most_bytes: int, most_errors: int = 100) -> Checked:
    """Read all of a file, keeping nothing of it. Raises OSError."""
    seen: dict[str, int] = {}
    models: set[str] = set()
    errors: list[dict[str, Any]] = []
    n_lines = 0
    for number, raw in raw_lines(path, most_bytes):
        n_lines += 1
        try:
            if n_lines > MOST_LINES:
                raise BadLine(number, f"a batch may have {MOST_LINES:,} lines, this one has more")
            line = parsed(number, raw, endpoint, most_bytes)
            if line.custom_id in seen:
                first = seen[line.custom_id]
                raise BadLine(number, f"custom_id must be unique, line {first} has it as well", "custom_id")
            seen[line.custom_id] = number
            models.add(line.body["model"])
        except BadLine as error:
            errors.append(error.to_json())
            if len(errors) == most_errors or n_lines > MOST_LINES:
                break
    if not n_lines:
        errors.append(BadLine(1, "a batch must have at least one line, the file has none").to_json())
    return Checked(n_lines, sorted(models), errors)
