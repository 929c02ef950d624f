"""HTTP/1.1 responses and server-sent events, parsed as they come in: no socket, no clock.

A load generator shares its cores with the server that it measures, so this knows only what answers of
inference servers need: bodies by length, in chunks, or until the connection closes (RFC 9112), and the lines
of an event stream (WHATWG HTML, section 9.2).
"""

from __future__ import annotations

from collections.abc import Iterator

_MOST_HEAD = 64 << 10  # bytes of a status line and its headers
_MOST_LINE = 4 << 10  # bytes of the line that gives a chunk's size
_MOST_EVENT = 16 << 20  # bytes of one event


class Malformed(Exception):
    """The bytes are not what HTTP/1.1 or an event stream allow; says how."""


class Cut(Malformed):
    """The connection was closed before the end."""


class ResponseParser:
    """One response; `feed` gives its body in the pieces that arrive, unframed; iterate to its end.

    `done` is set when the last byte was read; `keep_alive` then says whether the connection may be reused.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.done = False
        self.keep_alive = False
        self._buffer = b""
        self._state = "head"
        self._left = 0  # bytes of the body, or of the chunk

    @property
    def begun(self) -> bool:
        """Whether any byte of a response has come."""
        return bool(self._buffer) or self.status != 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take what arrived -> pieces of the body. Raises Malformed, after the pieces that were good."""
        if self.done:
            raise Malformed(f"{len(data)} bytes came after the end of the response")
        self._buffer = self._buffer + data if self._buffer else data
        while self._buffer and not self.done:
            before = len(self._buffer)
            if self._state in ("length", "chunk", "until close"):
                yield self._piece()
            elif self._state == "head":
                self._head()
            else:
                self._chunk_line()
            if len(self._buffer) == before:
                return  # more bytes are needed
        if self.done and self._buffer:
            self.keep_alive = False  # an answer to a question that was not asked

    def eof(self) -> None:
        """The connection was closed. Raises Cut if the response was not complete."""
        if self._state == "until close":
            self.done = True
        if not self.done:
            where = "in the middle of the response" if self.begun else "without a response"
            raise Cut(f"the connection was closed {where}")

    def _piece(self) -> bytes:
        """What is there of the body, or of the chunk."""
        if self._state == "until close":
            piece, self._buffer = self._buffer, b""
            return piece
        piece = self._buffer[: self._left]
        self._buffer = self._buffer[len(piece) :]
        self._left -= len(piece)
        if self._left == 0:
            self.done = self._state == "length"
            self._state = "chunk end"
        return piece

    def _chunk_line(self) -> None:
        """Take the size before a chunk, the empty line behind it, or a trailer, if it is whole."""
        line, found, rest = self._buffer.partition(b"\n")
        if len(line) > _MOST_LINE:
            raise Malformed(f"expected the size of a chunk, found a line of more than {_MOST_LINE} bytes")
        if not found:
            return
        self._buffer, line = rest, line.removesuffix(b"\r")
        if self._state == "trailers":
            self.done = not line
        elif self._state == "chunk end":
            if line:
                raise Malformed(f"expected the end of a chunk, found {line[:40]!r}")
            self._state = "chunk size"
        else:
            self._left = _hexadecimal(line.partition(b";")[0].strip())
            self._state = "chunk" if self._left else "trailers"

    def _head(self) -> None:
        """Take the status line and the headers, if they are whole."""
        end, width = _end_of_head(self._buffer)
        if end > _MOST_HEAD or (end < 0 and len(self._buffer) > _MOST_HEAD):
            raise Malformed(f"expected headers, found no end of them in {_MOST_HEAD} bytes")
        if not self._buffer.startswith(b"HTTP/1."[: len(self._buffer)]):
            raise Malformed(f"expected HTTP/1.1, found {self._buffer[:40]!r}")
        if end < 0:
            return
        lines = self._buffer[:end].decode("latin-1").replace("\r\n", "\n").split("\n")
        self._buffer = self._buffer[end + width :]
        version, status = _status_line(lines[0])
        if 100 <= status < 200:
            return  # the real response is still to come
        self.status = status
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon:
                raise Malformed(f"expected a header, found {line[:40]!r}")
            self.headers[name.strip().lower()] = value.strip()
        self._framing(version)

    def _framing(self, version: str) -> None:
        connection = self.headers.get("connection", "").lower()
        self.keep_alive = "close" not in connection and (version == "1.1" or "keep-alive" in connection)
        length = self.headers.get("content-length")
        if self.status in (204, 304):
            self.done = True
        elif "chunked" in self.headers.get("transfer-encoding", "").lower():
            self._state = "chunk size"
        elif length is None:
            self._state = "until close"
            self.keep_alive = False
        elif not (length.isascii() and length.isdigit() and len(length) <= 15):
            raise Malformed(f"expected a Content-Length in digits, found {length[:40]!r}")
        else:
            self._left = int(length)
            self._state = "length"
            self.done = self._left == 0


def _end_of_head(data: bytes) -> tuple[int, int]:
    """Where the empty line is that ends the headers, and how long it is; -1 if it has not come."""
    ends = [(at, len(mark)) for mark in (b"\r\n\r\n", b"\n\n") if (at := data.find(mark)) >= 0]
    return min(ends, default=(-1, 0))


def _status_line(line: str) -> tuple[str, int]:
    version, _, rest = line.partition(" ")
    status = rest.partition(" ")[0]
    if version not in ("HTTP/1.0", "HTTP/1.1") or not (
        len(status) == 3 and status.isascii() and status.isdigit() and status >= "100"
    ):
        raise Malformed(f"expected a status line of HTTP/1.1, found {line[:40]!r}")
    return version.removeprefix("HTTP/"), int(status)


def _hexadecimal(text: bytes) -> int:
    try:
        if not text.isalnum() or len(text) > 15:
            raise ValueError
        return int(text, 16)
    except ValueError:
        raise Malformed(f"expected the size of a chunk, found {text[:40]!r}") from None


class EventParser:
    """`feed` gives the data of each event that is complete; comments and other fields are left out."""

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[bytes] = []
        self._size = 0  # bytes of `_data`

    def feed(self, data: bytes) -> list[bytes]:
        """Take a piece of the body -> data of events that ended in it. Raises Malformed for a huge one."""
        self._buffer += data
        # a \r at the end may be half of \r\n
        end = max(self._buffer.rfind(b"\n"), self._buffer.rfind(b"\r", 0, len(self._buffer) - 1)) + 1
        whole, self._buffer = self._buffer[:end], self._buffer[end:]
        events = []
        for line in whole.splitlines():
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                self._data, self._size = [], 0
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
                self._size += len(line)
        if len(self._buffer) + self._size > _MOST_EVENT:
            raise Malformed(f"expected an event, found more than {_MOST_EVENT} bytes without its end")
        return events
