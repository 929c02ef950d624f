"""Images of requests: data URLs as they are, uploaded files, remote ones fetched where that is allowed.

A message never names a path of this machine: only parts made here reach the model.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from puna.server.errors import bad

ReadFile = Callable[[str, str], Awaitable[bytes]]  # the id of an uploaded file, and the field that names it


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
    if part["type"] == "text":
        return part
    named = part["image_url"]
    if named.get("file_id") is not None:
        if read_file is None:
            raise bad(where, "an image must be a data: or https: URL here, found a file_id")
        return {"type": "image", "image": await read_file(named["file_id"], where)}
    url = named["url"]
    if url.startswith("data:"):
        return {"type": "image_url", "image_url": {"url": url}}
    if not url.startswith(("http://", "https://")):
        raise bad(
            where,
            f"an image_url must be a data: or https: URL, found {url[:40]!r}; send the image as "
            "data:image/…;base64,…",
        )
    from puna.server.fetch import fetch_image

    return {"type": "image", "image": await fetch_image(url, hosts, where)}
