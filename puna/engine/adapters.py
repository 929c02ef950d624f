"""Which adapters the executor has, and how many requests need each: one in use stays until they end."""

from __future__ import annotations

from typing import Any

from puna.core import Executor, UnknownModel


class AdapterTable:
    """The adapters of one executor. For the engine's thread, but for check()."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._n_users: dict[int, int] = {}  # of every adapter that new requests may have
        self._leaving: dict[int, int] = {}  # of those that they may not have any more

    def check(self, number: int) -> None:
        """Raise UnknownModel for an adapter that is not loaded. Safe in any thread."""
        if number and number not in self._n_users:
            raise UnknownModel("the adapter of this request is not loaded any more; load it again to go on")

    def load(self, number: int, prepared: Any) -> None:
        """See core.Executor.load_adapter; numbers are never used again."""
        assert number > 0
        assert number not in self._n_users
        self._executor.load_adapter(number, prepared)
        self._n_users[number] = 0

    def unload(self, number: int) -> None:
        """Let no request have it any more; its memory is free when the last one that has it has ended."""
        n_users = self._n_users.pop(number, None)
        if n_users == 0:
            self._executor.unload_adapter(number)
        elif n_users:
            self._leaving[number] = n_users

    def enter(self, number: int) -> None:
        """A request begins."""
        if number:
            self._n_users[number] += 1

    def leave(self, number: int) -> None:
        """A request has ended."""
        if number in self._leaving:
            self._leaving[number] -= 1
            if not self._leaving[number]:
                del self._leaving[number]
                self._executor.unload_adapter(number)
        elif number:
            self._n_users[number] -= 1
