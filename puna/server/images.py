"""Images of requests: data URLs as they are, uploaded files, remote ones fetched where that is allowed.

A message never names a path of this machine: only parts made here reach the model. A part may say under "at"
where the request has it, for errors, where that is not the content of the turn of that number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from puna.server.errors import bad, content_lost, not_found
from puna.server.storage.files import Files

ReadFile = Callable[[str, str], Awaitable[bytes]]  # the id of an uploaded file, and the field that names it

_PURPOSES = ("vision", "user_data")  # of files that may be shown to a model
_MOST_BYTES = 20 << 20


def uploaded(files: Files, tenant: str) -> ReadFile:
    """Reads pictures that a tenant has uploaded; raises ApiError."""

    def read(id: str, where: str) -> bytes:
        file = files.find(tenant, id)
        if file is None:
            raise not_found(f"there is no file {id!r}", where, "file_not_found")
        if file.purpose not in _PURPOSES:
            raise bad(where, f"an image must be a file with purpose vision, {id} has {file.purpose!r}")
        if file.n_bytes > _MOST_BYTES:
            raise bad(where, f"an image may have {_MOST_BYTES:,} bytes, {id} has {file.n_bytes:,}")
        try:
            with files.open(file.id) as content:
                return content.read()
        except OSError:
            raise content_lost(id) from None

    async def read_beside(id: str, where: str) -> bytes:
        return await asyncio.to_thread(read, id, where)

    return read_beside


async def resolved(
    hosts: Sequence[str],
    turns: Sequence[Mapping[str, Any]],
    read_file: ReadFile | None = None,
    *,
    where: str = "messages",
) -> list[Mapping[str, Any]]:
    """The turns with every image as a data URL or as bytes, fetched from `hosts` only. Raises ApiError.

    `read_file` reads what the caller has uploaded; without it files cannot be named.
    """
    found: list[Mapping[str, Any]] = []
    for i, turn in enumerate(turns):
        content = turn.get("content")
        if isinstance(content, list):
            at = f"{where}[{i}].content" if where == "messages" else where
            turn = {**turn, "content": [await _part(hosts, read_file, at, part) for part in content]}
        found.append(turn)
    return found


async def _part(
    hosts: Sequence[str], read_file: ReadFile | None, where: str, part: Mapping[str, Any]
) -> Mapping[str, Any]:
    if part["type"] == "text" or isinstance(part.get("image"), bytes):  # bytes: of an API that sends them
        return part
    where = part.get("at", where)
    named = part["image_url"]
    if named.get("file_id") is not None:
        if read_file is None:
            raise bad(where, "an image must be a data: or https: URL here, found a file_id")
        return {"type": "image", "image": await read_file(named["file_id"], where), "at": where}
    url = named["url"]
    if url.startswith("data:"):
        return {**part, "image_url": {"url": url}}
    if not url.startswith(("http://", "https://")):
        raise bad(
            where,
            f"an image_url must be a data: or https: URL, found {url[:40]!r}; send the image as "
            "data:image/…;base64,…",
        )
    from puna.server.fetch import fetch_image

    return {"type": "image", "image": await fetch_image(url, hosts, where), "at": where}
