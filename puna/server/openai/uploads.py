"""multipart/form-data (RFC 7578) straight to the disk: nothing of a file is held in memory."""

from __future__ import annotations

import asyncio
from typing import Any

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from puna.server.errors import ApiError, bad
from puna.server.storage.files import Upload

_MOST_FIELD = 4096  # bytes of a field that is no file
_MOST_PARTS = 16


class Form:
    """The fields of a form as they arrive; the one that is called `file` goes to the upload."""

    def __init__(self, upload: Upload, known: frozenset[str]) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.is_whole = False
        self._upload = upload
        self._known = known
        self._n_parts = 0
        self._header = b""
        self._value = b""
        self._name = ""
        self._field: bytearray | None = None  # of the part that is being read; None: the file

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._whole,
        }

    def _begin(self) -> None:
        self._n_parts += 1
        if self._n_parts > _MOST_PARTS:
            raise ApiError(400, f"a form may have {_MOST_PARTS} parts, this one has more")
        self._header, self._value, self._name, self._field = b"", b"", "", bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self._name = options.get(b"name", b"").decode("utf-8", "replace")
            if self._name == "file":
                self._take_file(options.get(b"filename"))
        self._header, self._value = b"", b""

    def _take_file(self, filename: bytes | None) -> None:
        if self.filename is not None:
            raise bad("file", "a form must have one file, this one has several")
        name = (filename or b"").decode("utf-8", "replace")
        if not (0 < len(name) <= 255 and name.isprintable()):
            raise bad("file", f"a file must have a name of 1 to 255 printable letters, found {name!r:.80}")
        self.filename = name
        self._field = None

    def _headers_end(self) -> None:
        if self._name not in self._known:
            raise bad(self._name, f"there is no field {self._name!r} in this form; take it out")
        if self._name in self.fields:
            raise bad(self._name, f"the field {self._name!r} comes twice; give it once")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._upload.write(data[start:end])
            return
        self._field += data[start:end]
        if len(self._field) > _MOST_FIELD:
            raise bad(self._name, f"the field {self._name!r} may have {_MOST_FIELD} bytes, it has more")

    def _end(self) -> None:
        if self._field is not None:
            self.fields[self._name] = self._field.decode("utf-8", "replace")

    def _whole(self) -> None:
        self.is_whole = True


async def receive(http: HttpRequest, upload: Upload, known: frozenset[str]) -> Form:
    """Read a form with a field `file`. Raises ApiError, and what Upload.write() raises."""
    kind, options = parse_options_header(http.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise ApiError(
            415, f"the body must be multipart/form-data with a boundary, found {kind.decode('latin-1')!r:.80}"
        )
    form = Form(upload, known)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        async for chunk in http.stream():
            if chunk:
                await asyncio.to_thread(parser.write, chunk)
        parser.finalize()
    except ClientDisconnect:
        raise ApiError(400, "the client went away before its form was whole") from None
    except FormParserError as error:
        raise ApiError(400, f"the body must be multipart/form-data, it is not: {error}") from None
    if not form.is_whole:
        raise ApiError(400, "the body must be a whole form, it ends before its last boundary")
    if form.filename is None:
        raise bad("file", "file is missing", code="missing_required_parameter")
    return form
