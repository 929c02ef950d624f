"""Images of requests: data URLs as they are, remote ones fetched where that is allowed.

A message never names a path of this machine: only parts made here reach the model. A part may say under "at"
where the request has it, for errors, where that is not the content of the turn of that number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from puna.server.errors import bad


async def resolved(hosts: Sequence[str], turns: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The turns with every image as a data URL or as bytes, fetched from `hosts` only. Raises ApiError."""
    found: list[Mapping[str, Any]] = []
    for i, turn in enumerate(turns):
        content = turn.get("content")
        if isinstance(content, list):
            parts = [await _part(hosts, f"messages[{i}]", part) for part in content]
            turn = {**turn, "content": parts}
        found.append(turn)
    return found


async def _part(hosts: Sequence[str], where: str, part: Mapping[str, Any]) -> Mapping[str, Any]:
    if part["type"] == "text":
        return part
    where = part.get("at", f"{where}.content")
    url = part["image_url"]["url"]
    if url.startswith("data:"):
        return part
    if not url.startswith(("http://", "https://")):
        raise bad(
            where,
            f"an image_url must be a data: or https: URL, found {url[:40]!r}; send the image as "
            "data:image/…;base64,…",
        )
    from puna.server.fetch import fetch_image

    return {"type": "image", "image": await fetch_image(url, hosts, where), "at": where}
