"""What a key may use, and what is left of it: kept in memory, by one process, for one event loop.

Requests and tokens a minute are counted over the last 60 seconds exactly (a log of admissions, not a bucket,
which would let twice the limit through in some minute). Tokens are reserved when a request is admitted, its
prompt and all that its answer may have, and what it did not use is given back when it ends. The day is UTC's.

Several servers each keep their own counts: share a limit of N between them as N / servers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, date, datetime, timedelta
from math import ceil
from typing import Any

from puna.core import BadValue, PunaError, UnknownOption, closest

MINUTE = 60.0
_BUSY_RETRY_S = 1.0  # nobody knows when a request ends


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one key; None is no limit. Raises BadValue for values that make no sense."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    concurrent_requests: int | None = None
    models: tuple[str, ...] | None = None  # that it may use
    priority: int = 0  # higher goes first
    policy: str | None = None  # the safety policy that its calls are held to, by name

    def __post_init__(self) -> None:
        for name in COUNTED:
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 1 <= value <= 2**53):
                raise BadValue(f"{name} must be 1 or more, or none for no limit; got {value!r}")
        if type(self.priority) is not int or not -1000 <= self.priority <= 1000:
            raise BadValue(f"priority must be from -1000 to 1000, got {self.priority!r}")
        models = self.models
        if models is not None and not (
            isinstance(models, tuple) and models and all(isinstance(name, str) and name for name in models)
        ):
            raise BadValue(f"models must be names of models, or none for all; got {models!r}")

        if self.policy is not None and not (
            isinstance(self.policy, str) and 1 <= len(self.policy) <= 100 and self.policy.isprintable()
        ):
            raise BadValue(f"policy must be the name of a safety policy, or none, got {self.policy!r:.80}")

    def allows(self, model: str) -> bool:
        return self.models is None or model in self.models

    def to_json(self) -> dict[str, Any]:
        """Without what is at its default; `from_json` gives equal limits."""
        defaults = {f.name: f.default for f in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Limits:
        """Raises UnknownOption and BadValue."""
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise UnknownOption(f"there is no limit {name!r}{closest(name, known)}")
        models = values.get("models")
        listed = tuple(models) if isinstance(models, list | tuple) else models
        return cls(**{**values, "models": listed})


COUNTED = ("requests_per_minute", "tokens_per_minute", "tokens_per_day", "concurrent_requests")


class RateLimited(PunaError):
    """HTTP 429. `retry_after` is None where the request asks for more than the limit ever gives."""

    def __init__(
        self, which: str, limit: int, used: int, requested: int, retry_after: float | None, unit: str
    ) -> None:
        super().__init__(_sentence(which, limit, used, requested, retry_after, unit))
        self.which = which  # a name of Limits
        self.limit = limit
        self.used = used
        self.requested = requested
        self.retry_after = retry_after  # seconds


def _sentence(which: str, limit: int, used: int, requested: int, retry_after: float | None, unit: str) -> str:
    if retry_after is None:
        return (
            f"the request may take {requested} {unit}, but the limit of this key is {limit} "
            f"({which}); shorten the prompt or ask for a shorter answer (max_tokens)"
        )
    return (
        f"the limit of this key is {limit} {unit} ({which}), {used} are used and the request may take "
        f"{requested}; try again in {ceil(retry_after)} s"
    )


@dataclass(slots=True, eq=False)
class _Entry:
    """A request that was admitted within the last minute."""

    at: float  # by the limiter's clock
    tokens: int


@dataclass(slots=True)
class _State:
    """What one key has used."""

    entries: deque[_Entry] = field(default_factory=deque)  # of the last minute, oldest first
    minute_tokens: int = 0  # sum of the entries'
    day: date = date.min
    day_tokens: int = 0
    n_live: int = 0  # leases that are not settled


@dataclass(frozen=True, slots=True)
class Used:
    """What one key has used, requests under way counted with all that they may take."""

    live: int  # requests that have not ended
    requests: int  # within the last minute
    tokens: int  # likewise
    tokens_today: int  # UTC


class Lease:
    """What one request was given. Settle it exactly when the request ends, however that is."""

    __slots__ = ("_day", "_entry", "_is_settled", "_state", "n_reserved")

    def __init__(self, state: _State, entry: _Entry) -> None:
        self._state = state
        self._entry = entry
        self._day = state.day
        self._is_settled = False
        self.n_reserved = entry.tokens

    def settle(self, n_prompt: int, n_output: int) -> None:
        """Give back what was not used, and the place. A second time does nothing.

        `n_prompt` are the prompt's tokens that were computed, not those found in a cache.
        """
        if self._is_settled:
            return
        self._is_settled = True
        state = self._state
        state.n_live -= 1
        unused = self.n_reserved - n_prompt - n_output
        if self._entry.tokens >= 0:  # still within the minute
            self._entry.tokens -= unused
            state.minute_tokens -= unused
        if state.day == self._day:
            state.day_tokens -= unused


class Limiter:
    """Counts for all keys. Never blocks; for the event loop's thread alone.

    `used_today` are tokens of the current day by key id, as the ledger has them, for the counts of a day
    to survive a restart.
    """

    def __init__(
        self,
        used_today: Mapping[str, int] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._clock = clock
        self._now = now
        self._states: dict[str, _State] = {}
        today = now().astimezone(UTC).date()
        for key_id, tokens in (used_today or {}).items():
            self._states[key_id] = _State(day=today, day_tokens=tokens)

    def admit(self, key_id: str, limits: Limits, n_prompt: int, n_answer: int) -> Lease:
        """Reserve a place, `n_prompt` tokens and all `n_answer` tokens that the answer may have.

        Raises RateLimited, and then nothing is reserved.
        """
        state, at = self._current(key_id)
        n_tokens = n_prompt + n_answer
        self._check_requests(state, limits, at)
        self._check_tokens(state, limits, at, n_tokens)
        entry = _Entry(at, n_tokens)
        state.entries.append(entry)
        state.minute_tokens += n_tokens
        state.day_tokens += n_tokens
        state.n_live += 1
        return Lease(state, entry)

    def n_live(self, key_id: str) -> int:
        """Requests of a key that were admitted and have not ended."""
        state = self._states.get(key_id)
        return state.n_live if state else 0

    def used(self, key_id: str) -> Used:
        """What counts against the limits of a key now."""
        if key_id not in self._states:
            return Used(0, 0, 0, 0)
        state, _ = self._current(key_id)
        return Used(state.n_live, len(state.entries), state.minute_tokens, state.day_tokens)

    def headers(self, key_id: str, limits: Limits) -> dict[str, str]:
        """OpenAI's x-ratelimit-… of limits by the minute, for those that the key has.

        https://platform.openai.com/docs/guides/rate-limits
        """
        state, at = self._current(key_id)
        reset = max(0.0, state.entries[-1].at + MINUTE - at) if state.entries else 0.0
        found = {}
        for unit, limit, used in (
            ("requests", limits.requests_per_minute, len(state.entries)),
            ("tokens", limits.tokens_per_minute, state.minute_tokens),
        ):
            if limit is not None:
                found[f"x-ratelimit-limit-{unit}"] = str(limit)
                found[f"x-ratelimit-remaining-{unit}"] = str(max(0, limit - used))
                found[f"x-ratelimit-reset-{unit}"] = duration(reset if used else 0.0)
        return found

    def _current(self, key_id: str) -> tuple[_State, float]:
        """The counts of a key without what has left its windows, and the time."""
        state = self._states.setdefault(key_id, _State())
        at = self._clock()
        while state.entries and state.entries[0].at <= at - MINUTE:
            old = state.entries.popleft()
            state.minute_tokens -= old.tokens
            old.tokens = -1
        today = self._now().astimezone(UTC).date()
        if today > state.day:  # a clock that is set back keeps its day
            state.day, state.day_tokens = today, 0
        return state, at

    def _check_requests(self, state: _State, limits: Limits, at: float) -> None:
        most = limits.concurrent_requests
        if most is not None and state.n_live >= most:
            raise RateLimited(
                "concurrent_requests", most, state.n_live, 1, _BUSY_RETRY_S, "requests at a time"
            )
        most = limits.requests_per_minute
        used = len(state.entries)
        if most is not None and used >= most:
            wait = state.entries[used - most].at + MINUTE - at
            raise RateLimited("requests_per_minute", most, used, 1, wait, "requests a minute")

    def _check_tokens(self, state: _State, limits: Limits, at: float, n_tokens: int) -> None:
        most = limits.tokens_per_minute
        if most is not None and state.minute_tokens + n_tokens > most:
            wait = None if n_tokens > most else _wait(state, at, state.minute_tokens + n_tokens - most)
            raise RateLimited(
                "tokens_per_minute", most, state.minute_tokens, n_tokens, wait, "tokens a minute"
            )
        most = limits.tokens_per_day
        if most is not None and state.day_tokens + n_tokens > most:
            wait = None if n_tokens > most else self._until_midnight()
            raise RateLimited("tokens_per_day", most, state.day_tokens, n_tokens, wait, "tokens a day (UTC)")

    def _until_midnight(self) -> float:
        now = self._now().astimezone(UTC)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        return (midnight - now).total_seconds()


def _wait(state: _State, at: float, n_missing: int) -> float:
    """Seconds until entries of `n_missing` tokens have left the minute."""
    for entry in state.entries:
        n_missing -= entry.tokens
        if n_missing <= 0:
            return max(0.0, entry.at + MINUTE - at)
    return MINUTE


def duration(seconds: float) -> str:
    """As OpenAI writes it: 120ms, 7.66s, 6m0s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 2), 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"
