"""A page of the web as text, because the user named its address."""

from __future__ import annotations

from urllib.error import URLError
from urllib.request import Request, urlopen

from puna.core import BadInput

_LONGEST = 4 << 20  # bytes
_TIMEOUT_S = 15.0


def fetch(url: str) -> str:
    """Raises BadInput where it cannot be had."""
    request = Request(url, headers={"user-agent": "puna-license-check", "accept": "text/html,text/plain"})
    try:
        with urlopen(request, timeout=_TIMEOUT_S) as answer:
            data = answer.read(_LONGEST + 1)
            charset = answer.headers.get_content_charset() or "utf-8"
    except (URLError, OSError, ValueError) as error:
        raise BadInput(
            f"{url} could not be read ({error}); name a file, or an address that answers"
        ) from None
    if len(data) > _LONGEST:
        raise BadInput(f"{url} is larger than {_LONGEST >> 20} MiB; name the page that shows the attribution")
    try:
        return str(data.decode(charset, "replace"))
    except LookupError:
        raise BadInput(f"{url} is in the unknown encoding {charset!r:.40}; name a file") from None
