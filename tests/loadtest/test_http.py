"""The parser of HTTP and of event streams, by what the standards say and any cut of the bytes."""

from __future__ import annotations

import http.client
import io
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.loadtest.http import Cut, EventParser, Malformed, ResponseParser

BODY = b"data: \xc3\xa9\n\ndata: two\r\n\r\n"


def cuts(data: bytes, at: list[int]) -> list[bytes]:
    """The data in pieces, cut at those places."""
    edges = [0, *sorted(min(i, len(data)) for i in at), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def chunked(body: bytes, sizes: list[int]) -> bytes:
    out, rest = b"", body
    for size in sizes:
        piece, rest = rest[:size], rest[size:]
        if piece:
            out += b"%X;note=1\r\n" % len(piece) + piece + b"\r\n"
    if rest:
        out += b"%x\r\n" % len(rest) + rest + b"\r\n"
    return out + b"0\r\nTrailer: x\r\n\r\n"


def fed(parser: ResponseParser, data: bytes) -> list[bytes]:
    return list(parser.feed(data))


def head(*lines: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *lines, "", ""]).encode()


class _Socket:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *args: Any) -> io.BytesIO:
        return io.BytesIO(self._data)


def by_the_standard_library(data: bytes) -> tuple[int, bytes]:
    response = http.client.HTTPResponse(_Socket(data))  # type: ignore[arg-type]
    response.begin()
    return response.status, response.read()


places = st.lists(st.integers(0, 400), max_size=40)


@given(body=st.binary(max_size=200), sizes=st.lists(st.integers(1, 50), max_size=8), at=places)
def test_chunks_equal_the_standard_library_however_they_arrive(
    body: bytes, sizes: list[int], at: list[int]
) -> None:
    data = head("Transfer-Encoding: chunked") + chunked(body, sizes)
    parser = ResponseParser()
    found = b"".join(piece for part in cuts(data, at) if part for piece in parser.feed(part))
    assert parser.done
    assert parser.keep_alive
    assert (parser.status, found) == by_the_standard_library(data)


@given(body=st.binary(min_size=1, max_size=200), at=places)
def test_lengths_and_informational_responses(body: bytes, at: list[int]) -> None:
    data = b"HTTP/1.1 100 Continue\r\n\r\n" + head(f"content-LENGTH:{len(body)}", "X: y") + body
    parser = ResponseParser()
    found = b"".join(piece for part in cuts(data, at) if part for piece in parser.feed(part))
    assert found == body
    assert parser.done
    assert parser.headers["x"] == "y"


def test_a_body_until_the_connection_closes() -> None:
    parser = ResponseParser()
    assert b"".join(parser.feed(head("X: y") + BODY)) == BODY
    assert not parser.done
    parser.eof()
    assert parser.done
    assert not parser.keep_alive


@pytest.mark.parametrize("line", ["Connection: close", "connection: Close"])
def test_a_connection_that_will_be_closed_is_not_kept(line: str) -> None:
    parser = ResponseParser()
    fed(parser, head(line, "Content-Length: 0"))
    assert parser.done
    assert not parser.keep_alive


def test_old_servers_close_unless_they_say_otherwise() -> None:
    for lines, kept in ((b"", False), (b"Connection: keep-alive\r\n", True)):
        parser = ResponseParser()
        fed(parser, b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n" + lines + b"\r\nx")
        assert (parser.done, parser.keep_alive) == (True, kept)


def test_bytes_behind_the_end_spoil_the_connection() -> None:
    parser = ResponseParser()
    assert fed(parser, head("Content-Length: 1") + b"xy") == [b"x"]
    assert not parser.keep_alive
    with pytest.raises(Malformed, match="1 bytes came after"):
        fed(parser, b"z")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "expected HTTP/1.1"),
        (b"G", "expected HTTP/1.1"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "status line"),
        (b"HTTP/1.1 \xb2\xb2\xb2 OK\r\n\r\n", "status line"),
        (head("no colon"), "expected a header"),
        (head("Content-Length: -1"), "Content-Length in digits"),
        (head("Content-Length: 1e3"), "Content-Length in digits"),
        (head("Transfer-Encoding: chunked") + b"xyz\r\n", "size of a chunk"),
        (head("Transfer-Encoding: chunked") + b"-1\r\n", "size of a chunk"),
        (head("Transfer-Encoding: chunked") + b"1\r\nab\r\n", "end of a chunk"),
        (head("Transfer-Encoding: chunked") + b"1" * 5000, "more than 4096 bytes"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000, "no end of them"),
    ],
)
def test_garbage_is_said(data: bytes, said: str) -> None:
    with pytest.raises(Malformed, match=said):
        fed(ResponseParser(), data)


@given(data=st.binary(max_size=300), at=places)
def test_nothing_else_is_raised(data: bytes, at: list[int]) -> None:
    parser = ResponseParser()
    try:
        for part in cuts(b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n" + data, at):
            fed(parser, part)
        parser.eof()
    except Malformed:
        pass


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200", head("Content-Length: 3") + b"ab"])
def test_an_end_too_early_is_cut(data: bytes) -> None:
    parser = ResponseParser()
    fed(parser, data)
    with pytest.raises(Cut, match="was closed"):
        parser.eof()


lines = st.text("a: é\u2028\v😀", max_size=20)  # splitlines() of text would cut at two of them


@given(
    events=st.lists(st.lists(lines, min_size=1, max_size=3), max_size=5),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    at=places,
)
def test_events_come_whole_whatever_the_cuts(events: list[list[str]], newline: str, at: list[int]) -> None:
    stream = ": a comment" + newline + newline
    for data in events:
        stream += "event: x" + newline + "".join(f"data: {line}{newline}" for line in data) + newline
    # a "\r" at the very end may still become "\r\n"
    stream += ": the end\n"
    parser = EventParser()
    found = [event for part in cuts(stream.encode(), at) for event in parser.feed(part)]
    assert found == ["\n".join(data).encode() for data in events]


def test_one_space_behind_the_colon_is_not_data() -> None:
    assert EventParser().feed(b"data:a\n\ndata:  b\n\nid: 1\n\ndata\n\n") == [b"a", b" b"]


def test_an_endless_event_ends() -> None:
    parser = EventParser()
    for _ in range(16):
        parser.feed(b"x" * ((1 << 20) - 1))
    with pytest.raises(Malformed, match="without its end"):
        parser.feed(b"x" * 17)
