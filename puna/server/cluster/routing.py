"""Which replica gets a request: what Ray Serve's router asks, for replicas of any kind of name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Generic
from weakref import WeakSet

from puna.server.cluster.prefixes import Id, PrefixTable
from puna.server.cluster.wire import Envelope

_NO_PROMPT = Envelope({}, b"")


class Routing(Generic[Id]):
    """Of one front, which is the only door: so it knows what each replica was sent, and what it has to do."""

    def __init__(self, name_of: Callable[[Id], str], slack: int) -> None:
        """`slack`: requests that whoever has a prompt may have more than the replica with the fewest."""
        self._name_of = name_of
        self._slack = slack
        self._table: PrefixTable[Id] = PrefixTable()
        self._loads: dict[Id, int] = {}  # requests of each replica, the oldest replica first
        _ROUTINGS.add(self)

    @property
    def names(self) -> list[str]:
        """The replicas there are, the oldest first."""
        return [self._name_of(replica) for replica in list(self._loads)]

    def set_replicas(self, replicas: Collection[Id]) -> None:
        """Those that can be asked from now on."""
        new = sorted((id for id in replicas if id not in self._loads), key=self._name_of)
        self._loads = {id: n for id, n in self._loads.items() if id in replicas} | dict.fromkeys(new, 0)
        self._table.keep(replicas)

    def order(self, request: Iterable[object], replicas: Iterable[Id]) -> list[Id]:
        """The replicas that may answer a request (the arguments it is sent with), the best first."""
        envelope = _envelope(request)
        if envelope.replica is not None:
            return sorted(replicas, key=lambda id: self._name_of(id) != envelope.replica)[:1]
        if envelope.keys is None:  # what replicas keep to themselves, as who is signed in, stays with one
            age = {id: n for n, id in enumerate(self._loads)}
            return sorted(replicas, key=lambda id: age.get(id, len(age)))
        return self._table.order(envelope.keys, {id: self._loads.get(id, 0) for id in replicas}, self._slack)

    def sent(self, request: Iterable[object], replica: Id) -> None:
        if replica in self._loads:
            self._loads[replica] += 1
            keys = _envelope(request).keys
            if keys is not None:
                self._table.add(keys, replica)

    def ended(self, replica: Id) -> None:
        if replica in self._loads:
            self._loads[replica] = max(0, self._loads[replica] - 1)


def _envelope(request: Iterable[object]) -> Envelope:
    return next((part for part in request if isinstance(part, Envelope)), _NO_PROMPT)


_ROUTINGS: WeakSet[Routing[Any]] = WeakSet()


def replica_names() -> list[str]:
    """The replicas that this process can send requests to, the oldest first."""
    return [name for routing in _ROUTINGS for name in routing.names]
