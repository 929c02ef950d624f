"""What an operator can set of replicas; fields are named as the flags of `puna serve --ray`."""

from __future__ import annotations

from dataclasses import dataclass

from puna.core import BadValue
from puna.server.config import check_range, option

_DAY = 86400.0


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Raises BadValue for values outside their range, or that contradict each other."""

    replicas: int = option(0, "replicas of the server, always as many (default: 1)", "N")
    min_replicas: int = option(0, "replicas at least, more as requests come; in place of --replicas", "N")
    max_replicas: int = option(0, "replicas at most", "N")
    target_requests: float = option(16.0, "requests at a time that a replica should have", "N")
    scale_up_after: float = option(10.0, "seconds of more requests before there are more replicas", "SECONDS")
    scale_down_after: float = option(300.0, "seconds of fewer before there are fewer", "SECONDS")
    ray_address: str = option("", "the cluster (default: this machine's, or a new one on it)", "HOST:PORT")
    replica_gpus: int = option(0, "GPUs that each replica gets for itself", "N")

    def __post_init__(self) -> None:
        for name, least, most in (
            ("replicas", 0, 10_000),
            ("min_replicas", 0, 10_000),
            ("max_replicas", 0, 10_000),
            ("target_requests", 0.1, 1e6),
            ("scale_up_after", 0, _DAY),
            ("scale_down_after", 0, _DAY),
            ("replica_gpus", 0, 1024),
        ):
            check_range(self, name, least, most)
        if self.replicas and (self.min_replicas or self.max_replicas):
            raise BadValue(
                "replicas is a fixed number, min_replicas and max_replicas are for one that changes; give "
                "one or the other"
            )
        if bool(self.min_replicas) != bool(self.max_replicas) or self.min_replicas > self.max_replicas:
            raise BadValue(
                "a number of replicas that changes needs min_replicas and max_replicas, 1 or more and the "
                f"first not above the second; got {self.min_replicas} and {self.max_replicas}"
            )

    @property
    def least(self) -> int:
        """Replicas that there are at any time."""
        return self.min_replicas or self.replicas or 1

    @property
    def scales(self) -> bool:
        return self.max_replicas > self.min_replicas
