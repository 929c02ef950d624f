"""Ray Serve's choice of a replica for a request, by prefixes.PrefixTable. Runs in the front's process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar
from weakref import WeakSet

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from puna.server.cluster.prefixes import PrefixTable
from puna.server.cluster.wire import Envelope

_NO_PROMPT = Envelope({}, b"")


class PrefixRouter(RequestRouter):
    """One table for all requests of this process: the front is the only door, so it knows what each replica
    was sent, and how many requests it has now.
    """

    routers: ClassVar[WeakSet[PrefixRouter]] = WeakSet()

    def initialize_state(self, slack: int = 4) -> None:
        """`slack`: requests that whoever has the prompt may have more than the one with the fewest."""
        self._slack = slack
        self._table: PrefixTable[ReplicaID] = PrefixTable()
        self._loads: dict[ReplicaID, int] = {}
        self._known: list[ReplicaID] = []  # the oldest first
        self.routers.add(self)

    @classmethod
    def running(cls, app: str) -> list[str]:
        """The replicas of an application that this process can send requests to, the oldest first."""
        return [id.unique_id for router in cls.routers if router.app_name == app for id in router._known]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._note(self._replicas)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._note(self._replicas)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """All replicas, each a rank of its own: the next is asked where one has no room."""
        envelope = _NO_PROMPT
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # where nobody has room
            envelope = next((arg for arg in pending_request.args if isinstance(arg, Envelope)), _NO_PROMPT)
        replicas = {replica.replica_id: replica for replica in candidate_replicas}
        return [[replicas[id]] for id in self._order(envelope, replicas)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        self._loads[replica_id] = self._loads.get(replica_id, 0) + 1
        for arg in pending_request.args:
            if isinstance(arg, Envelope):
                self._table.add(arg.keys, replica_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        if replica_id in self._loads:
            self._loads[replica_id] = max(0, self._loads[replica_id] - 1)

    def _order(self, envelope: Envelope, replicas: Iterable[ReplicaID]) -> list[ReplicaID]:
        if envelope.replica is not None:
            return sorted(replicas, key=lambda id: id.unique_id != envelope.replica)[:1]
        if not envelope.keys:  # what replicas keep to themselves, as who is signed in, stays with one
            age = {id: n for n, id in enumerate(self._known)}
            return sorted(replicas, key=lambda id: age.get(id, len(age)))
        return self._table.order(envelope.keys, {id: self._loads.get(id, 0) for id in replicas}, self._slack)

    def _note(self, replicas: Iterable[ReplicaID]) -> None:
        """Remember who is there, and forget who is gone."""
        there = set(replicas)
        self._known = [id for id in self._known if id in there]
        self._known += sorted(there.difference(self._known), key=lambda id: id.unique_id)
        self._loads = {id: self._loads.get(id, 0) for id in there}
        self._table.keep(there)
