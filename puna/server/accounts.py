"""Who calls, what they may, and what they are charged: the part of tenants/ that a call needs.

`Open` is the server of one person on loopback: nobody needs a key, nothing is limited.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from puna.server.tenants.usage import Usage


class Lease(Protocol):
    """What a call was given of its key's limits."""

    def settle(self, n_prompt: int, n_output: int) -> None:
        """Give back what was not used; a second time does nothing."""
        ...


class Account(Protocol):
    """Whose call it is."""

    @property
    def key_id(self) -> str | None: ...

    @property
    def tenant(self) -> str: ...

    def check_model(self, model: str) -> None:
        """Raise ApiError 403 where this key may not use the model."""
        ...

    def admit(self, n_prompt: int, n_output: int) -> Lease:
        """Reserve tokens and a place. Raises RateLimited."""
        ...

    def headers(self) -> Mapping[str, str]:
        """x-ratelimit-… of what is left."""
        ...


class Accounts(Protocol):
    def authenticate(self, key: str | None, scope: str) -> Account:
        """Raise ApiError 401 for no key or an unknown one, 403 without the scope."""
        ...

    def check_writable(self) -> None:
        """Raise ApiError 503 while calls could not be accounted for."""
        ...

    async def record(self, usage: Usage) -> None:
        """Returns once the row is durable. Raises ApiError 503 where it cannot be."""
        ...


class _NoLease:
    def settle(self, n_prompt: int, n_output: int) -> None: ...


class _Anyone:
    key_id: str | None = None
    tenant = ""

    def check_model(self, model: str) -> None: ...

    def admit(self, n_prompt: int, n_output: int) -> Lease:
        return _NoLease()

    def headers(self) -> Mapping[str, str]:
        return {}


class Open:
    """Accounts of a server that asks for no key and keeps no ledger."""

    def __init__(self) -> None:
        self._anyone = _Anyone()

    def authenticate(self, key: str | None, scope: str) -> Account:
        return self._anyone

    def check_writable(self) -> None: ...

    async def record(self, usage: Usage) -> None: ...
