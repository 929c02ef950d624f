"""Images of requests: data URLs as they are, uploaded files read, remote ones fetched where that is allowed.

A message never names a path of this machine: only parts made here reach the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from puna.server.accounts import Account
from puna.server.errors import bad

if TYPE_CHECKING:
    from puna.server.calls import Service


async def resolved(
    service: Service, account: Account, turns: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The turns with every image as a data URL or as bytes. Raises ApiError."""
    found: list[Mapping[str, Any]] = []
    for i, turn in enumerate(turns):
        content = turn.get("content")
        if isinstance(content, list):
            parts = [await _part(service, account, f"messages[{i}]", part) for part in content]
            turn = {**turn, "content": parts}
        found.append(turn)
    return found


async def _part(service: Service, account: Account, where: str, part: Mapping[str, Any]) -> Mapping[str, Any]:
    if part["type"] == "text":
        return part
    url = part["image_url"]["url"]
    if url.startswith("data:"):
        return part
    if not url.startswith(("http://", "https://")):
        raise bad(
            f"{where}.content",
            f"an image_url must be a data: or https: URL, found {url[:40]!r}; send the image as "
            "data:image/…;base64,…",
        )
    from puna.server.fetch import fetch_image

    return {"type": "image", "image": await fetch_image(url, service.config.image_host, f"{where}.content")}
