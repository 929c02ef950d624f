"""Ray Serve's choice of a replica for a request, by routing.Routing. Runs in the front's process.

Serve sends this class to whoever uses it as a copy, with what this file defines: nothing here may be shared.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from puna.server.cluster.routing import Routing


class PrefixRouter(RequestRouter):
    def initialize_state(self, slack: int) -> None:
        self._routing: Routing[ReplicaID] = Routing(attrgetter("unique_id"), slack)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._routing.set_replicas(list(self.curr_replicas))

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._routing.set_replicas(list(self.curr_replicas))

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """All replicas, each a rank of its own: the next is asked where one has no room."""
        request: list[Any] = []
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # where nobody has room
            request = pending_request.args
        replicas = {replica.replica_id: replica for replica in candidate_replicas}
        return [[replicas[id]] for id in self._routing.order(request, replicas)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        self._routing.sent(pending_request.args, replica_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._routing.ended(replica_id)
