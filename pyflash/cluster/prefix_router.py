"""Ray Serve's choice of a replica: the one that has the conversation's beginning, else the least loaded."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from pyflash.cluster.prefix_index import Loads, PrefixIndex, ranked

_PATIENCE = 10.0  # seconds in which a replica that is asked says whether it takes a request
HELD, N_PLACES = "held", "n_places"  # what a replica's record_routing_stats() tells


class PrefixRouter(RequestRouter):  # type: ignore[misc]  # Ray has no types
    """Lives in every process that has a handle of the replicas. Requests bring `keys`, see serve.prefix_keys."""

    def initialize_state(self, memory: float, n_places: int) -> None:
        """memory: as of PrefixIndex. n_places: requests that a replica answers at once, until it tells itself."""
        self._index = PrefixIndex(memory)
        self._n_places = n_places
        self._loads = Loads(_PATIENCE)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # all are in the ranks: what is left is to wait
        found = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        stats = {name: replica.routing_stats or {} for name, replica in found.items()}
        self._index.tell({name: told.get(HELD, ()) for name, told in stats.items()})
        n_places = max((told.get(N_PLACES, 0) for told in stats.values()), default=0) or self._n_places
        holders = self._index.holders(_keys(pending_request), found)
        # What came from here. Ray's own lengths of queues are as of when a request was last sent there.
        loads = {name: self._loads.of(name) for name in found}
        ranks = ranked(holders, loads, n_places, self._index.n_held)
        if pending_request is not None and ranks:
            self._loads.chosen(pending_request.metadata.internal_request_id, ranks[0][0])
        return [[found[name] for name in rank] for rank in ranks]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        self._index.sent(replica_id.unique_id, _keys(pending_request))
        self._loads.sent(pending_request.metadata.internal_request_id, replica_id.unique_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._loads.ended(internal_request_id, replica_id.unique_id)


def _keys(request: PendingRequest | None) -> list[str]:
    return list(request.kwargs.get("keys", ())) if request is not None else []
