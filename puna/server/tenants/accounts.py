"""Accounts by the database: keys, their limits, and a ledger of what they used."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from puna.core import PunaError
from puna.server.errors import ApiError, from_puna, unavailable
from puna.server.storage.database import Database
from puna.server.tenants.keys import Key, Keys
from puna.server.tenants.ledger import Ledger
from puna.server.tenants.limits import Lease, Limiter, Limits
from puna.server.tenants.prices import PriceList
from puna.server.tenants.queries import tokens_today
from puna.server.tenants.usage import Usage

_log = logging.getLogger("puna.server")
_ANYONE = Limits()
_RETRY_S = 5


@dataclass(frozen=True, slots=True)
class Account:
    """Whose call it is: the key's, or with None of somebody who has none."""

    limiter: Limiter
    key: Key | None

    @property
    def key_id(self) -> str | None:
        return self.key.id if self.key else None

    @property
    def tenant(self) -> str:
        return self.key.tenant if self.key else ""

    @property
    def _limits(self) -> Limits:
        return self.key.limits if self.key else _ANYONE

    def check_model(self, model: str) -> None:
        """Raise ApiError 403 where this key may not use the model."""
        if not self._limits.allows(model):
            allowed = ", ".join(self._limits.models or ())
            message = f"this key may use {allowed}, not {model}; ask the operator for another key"
            raise ApiError(403, message, param="model", code="model_not_allowed")

    @property
    def priority(self) -> int:
        """Of the key's requests in the engine: higher goes first."""
        return self._limits.priority

    @property
    def policy(self) -> str | None:
        """Name of the safety policy that its calls are held to; None: the server's default."""
        return self._limits.policy

    def admit(self, n_prompt: int, n_output: int) -> Lease:
        """Reserve tokens and a place. Raises RateLimited."""
        return self.limiter.admit(self.key_id or "", self._limits, n_prompt, n_output)

    def headers(self) -> Mapping[str, str]:
        """x-ratelimit-… of what is left."""
        return self.limiter.headers(self.key_id or "", self._limits)


class Accounts:
    """Of one server, over a database; for its event loop.

    Where keys are not required, a key that is known counts for its tenant, and any other for nobody: clients
    insist on sending one. Raises DatabaseUnavailable where the keys cannot be read.
    """

    def __init__(
        self, database: Database, prices: PriceList, *, requires_keys: bool, journal: Path | None = None
    ) -> None:
        self.database = database
        self.keys = Keys(database)
        self.keys.watch()
        self.ledger = Ledger(database, journal)
        self._prices = prices
        self.requires_keys = requires_keys
        self.limiter = Limiter(tokens_today(database))
        self._anyone = Account(self.limiter, None)

    def authenticate(self, secret: str | None, scope: str) -> Account:
        """Raise ApiError 401 for no key or an unknown one, 403 without the scope."""
        key = self._find(secret)
        if key is None:
            if self.requires_keys or scope == "admin":
                raise _unauthorized(secret)
            return self._anyone
        if scope not in key.scopes:
            message = f"this key has the scope {', '.join(key.scopes)}, this path needs {scope}"
            raise ApiError(403, message, kind="permission_error", code="missing_scope")
        return Account(self.limiter, key)

    def check_known(self, secret: str | None) -> None:
        """Raise ApiError 401 for strangers, where keys are required."""
        if self.requires_keys and self._find(secret) is None:
            raise _unauthorized(secret)

    def _find(self, secret: str | None) -> Key | None:
        try:
            return self.keys.find(secret) if secret else None
        except PunaError as error:
            raise from_puna(error) from None

    def of_key(self, key_id: str) -> Account:
        """Who made a batch; "" is somebody without a key. Raises ApiError 401 once the key is not active."""
        try:
            key = self.keys.active(key_id) if key_id else None
        except PunaError as error:
            raise from_puna(error) from None
        if key is None and (key_id or self.requires_keys):
            message = "the API key that made this batch has expired or was revoked"
            raise ApiError(401, message, kind="authentication_error", code="invalid_api_key")
        return Account(self.limiter, key)

    def check_writable(self) -> None:
        """Raise ApiError 503 while calls could not be accounted for."""
        if not self.ledger.is_writable:
            raise unavailable("usage cannot be recorded at the moment, so nothing is served", _RETRY_S)

    def priced(self, usage: Usage) -> Usage:
        """The row with what it costs."""
        n_prompt, n_cached, n_output = usage.prompt_tokens, usage.cached_tokens, usage.output_tokens
        cost = self._prices.cost(usage.model, usage.created_at, n_prompt, n_cached, n_output)
        return replace(usage, cost_nano=cost)

    async def record(self, usage: Usage) -> None:
        """Returns once the row is durable. Raises ApiError 503 where it cannot be."""
        try:
            await self.ledger.record(usage)
        except PunaError as error:
            _log.error("an answer could not be recorded: %s", error)
            raise unavailable("the answer was made but could not be recorded; try again", _RETRY_S) from error

    def close(self) -> None:
        """Write what is left, and let the database go."""
        self.keys.close()
        self.ledger.close()
        self.database.close()


def _unauthorized(secret: str | None) -> ApiError:
    if secret is None:
        message = "this server asks for an API key, there is none; send Authorization: Bearer KEY"
    else:
        message = "this API key is unknown, expired or revoked; ask the operator for another one"
    headers = {"www-authenticate": "Bearer"}
    return ApiError(401, message, kind="authentication_error", code="invalid_api_key", headers=headers)
