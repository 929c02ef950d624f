"""The log of a server: a line for each call, and for what the server itself does, as JSON or as text.

Lines hold who asked for what, how it ended and what it took. They hold no key, and no text of a prompt or an
answer unless the operator asks for that: of exceptions that may quote a request only the type and the place
are written. A thread writes, so that whoever reads the log slowly holds up no request; lines that find no
room are counted and named.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TextIO

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
_MOST_LINES = 10_000  # that wait to be written
_PATIENCE_S = 2.0  # for the last lines
_OURS = "puna_fields"
_log = logging.getLogger("puna.server")


def event(name: str, level: int = logging.INFO, *, text: str | None = None, **fields: Any) -> None:
    """Log that something happened. `text` is how a person is told; else its fields are listed."""
    if _log.isEnabledFor(level):
        _log.log(level, "%s", text or name, extra={_OURS: {"event": name, **fields}, "puna_text": text})


class JsonFormatter(logging.Formatter):
    """One JSON object (RFC 8259) a line. `shows_text` lets exceptions quote what they will."""

    def __init__(self, *, shows_text: bool = False) -> None:
        super().__init__()
        self._shows_text = shows_text

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _time(record), "level": record.levelname.lower(), **_fields(record)}
        if record.exc_info:
            line["exception"] = _exception(record.exc_info, self._shows_text)
        return json.dumps(line, ensure_ascii=False, default=str).replace("\u2028", "\\u2028")


class TextFormatter(logging.Formatter):
    """A line for people: the time, the level, what happened, and fields as name=value."""

    def __init__(self, *, shows_text: bool = False) -> None:
        super().__init__()
        self._shows_text = shows_text

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        text = getattr(record, "puna_text", None)
        if text is None:
            what = fields.pop("event")
            text = _one_line(str(fields.pop("message", what)))
            text += "".join(f" {name}={_quoted(fields[name])}" for name in fields if name != "logger")
        line = f"{_time(record)} {record.levelname.lower():<7} {text}"
        if record.exc_info:
            line += "\n" + _exception(record.exc_info, self._shows_text)
        return line


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """What a line says besides its time: ours by name, those of uvicorn's access log likewise."""
    ours: Mapping[str, Any] | None = getattr(record, _OURS, None)
    if ours is not None:
        return {name: value for name, value in ours.items() if value is not None}
    if record.name == "uvicorn.access" and isinstance(record.args, tuple) and len(record.args) == 5:
        client, method, path, _, status = record.args
        return {"event": "access", "method": method, "path": path, "status": status, "client": client}
    return {"event": "message", "logger": record.name, "message": record.getMessage()}


def _one_line(text: str) -> str:
    return text if text.isprintable() else json.dumps(text, ensure_ascii=True)[1:-1]


def _quoted(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if text and text.isprintable() and not any(ch in text for ch in ' "='):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable()) if isinstance(value, str) else text


_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def _exception(exc_info: _ExcInfo, shows_text: bool) -> str:
    """A traceback. A message may quote a request, and so may those of what led to it, so only types stay."""
    kind, error, trace = exc_info
    if kind is None or error is None:
        return "no exception"
    if shows_text:
        return "".join(traceback.format_exception(kind, error, trace)).rstrip()
    lines: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        lines += [f"{type(error).__module__}.{type(error).__qualname__}\n"]
        lines += reversed(traceback.format_tb(error.__traceback__))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "".join(lines).rstrip()


class Writer(logging.Handler):
    """Writes lines in a thread of its own."""

    def __init__(self, stream: TextIO, most: int = _MOST_LINES) -> None:
        super().__init__()
        self._stream = stream
        self._most = most
        self._lines: SimpleQueue[str | None] = SimpleQueue()  # one that signal handlers may use
        self._n_lost = 0
        self._thread = threading.Thread(target=self._write, name="puna-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if self._lines.qsize() >= self._most:
            self._n_lost += 1
            return
        self._lines.put(self.format(record))

    def close(self) -> None:
        """Write what waits, for as long as that goes on."""
        self._lines.put(None)
        self._thread.join(_PATIENCE_S)
        super().close()

    def _write(self) -> None:
        is_open = True
        while is_open:
            line = self._lines.get()
            is_open = line is not None
            text = "" if line is None else line + "\n"
            if self._n_lost and self._lines.empty():
                text += self._lost() + "\n"
            try:
                self._stream.write(text)
                if self._lines.empty():
                    self._stream.flush()
            except (BrokenPipeError, ValueError):  # nobody reads it any more: the server is there for others
                return
            except OSError:  # a full disk may have room again
                self._n_lost += 1

    def _lost(self) -> str:
        n, self._n_lost = self._n_lost, 0
        record = logging.LogRecord(
            "puna.server",
            logging.WARNING,
            "",
            0,
            "%d lines of the log were lost: it is read too slowly",
            (n,),
            None,
        )
        return self.format(record)


@contextmanager
def logging_to(
    stream: TextIO | None = None, *, form: str = "text", level: str = "info", shows_text: bool = False
) -> Iterator[None]:
    """Everything that is logged within goes to `stream`, standard error by default."""
    formatter = JsonFormatter if form == "json" else TextFormatter
    writer = Writer(stream or sys.stderr)
    writer.setFormatter(formatter(shows_text=shows_text))
    root = logging.getLogger()  # whose level, warnings, is that of all other packages
    levels = {"puna": level.upper(), "uvicorn.access": "INFO" if level == "debug" else "WARNING"}
    before = {name: logging.getLogger(name).level for name in levels}
    root.addHandler(writer)
    for name, chosen in levels.items():
        logging.getLogger(name).setLevel(chosen)
    try:
        yield
    finally:
        for name, old in before.items():
            logging.getLogger(name).setLevel(old)
        root.removeHandler(writer)
        writer.close()
