"""Who is signed in to the page: a random token in a cookie stands for an admin key, for some hours.

The server keeps digests of tokens and the ids of keys, never a key. A key that is revoked or expires ends
its sessions; a restart ends all.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable

from puna.server.tenants.keys import Key, Keys

LASTS_S = 12 * 3600
_MOST = 1000  # the oldest goes first


class Sessions:
    def __init__(self, keys: Keys, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._clock = clock
        self._open: dict[bytes, tuple[str, float]] = {}  # digest of a token -> id of its key, end

    def begin(self, key: Key) -> str:
        """A new token for whoever has shown `key`."""
        now = self._clock()
        self._open = {digest: found for digest, found in self._open.items() if found[1] > now}
        while len(self._open) >= _MOST:
            del self._open[next(iter(self._open))]
        token = secrets.token_urlsafe(32)
        self._open[_digest(token)] = (key.id, now + LASTS_S)
        return token

    def find(self, token: str) -> Key | None:
        """The key that a token stands for, while both hold. Raises DatabaseUnavailable."""
        key_id, ends_at = self._open.get(_digest(token), ("", 0.0))
        if not key_id or ends_at <= self._clock():
            return None
        key = self._keys.active(key_id)
        return key if key is not None and "admin" in key.scopes else None

    def end(self, token: str) -> None:
        self._open.pop(_digest(token), None)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
