"""Joining or starting a Ray cluster, and the replicas on it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray import serve
from ray._private import services
from ray.serve.config import AutoscalingConfig, ProxyLocation, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from puna import env
from puna.core import BadInput, WorkFailed
from puna.server.cluster.config import ClusterConfig
from puna.server.cluster.replica import Replica, Serving
from puna.server.cluster.router import PrefixRouter
from puna.server.config import ServerConfig
from puna.server.logs import event

APP = "puna"
_LOCK = "puna-front"
_LOOPBACK = "127.0.0.1"


class _Lock:
    """An actor whose name is taken while the process that made it lives."""


@contextmanager
def deployed(
    config: ServerConfig, cluster: ClusterConfig, threads: int, serving: Serving
) -> Iterator[DeploymentHandle]:
    """Replicas that run, until this is left. Each reserves `threads` processors.

    Raises BadInput where the cluster is not there, has no room or has another front, and WorkFailed where
    no replica can start.
    """
    is_ours = _join(cluster)
    with ExitStack() as stack:
        stack.callback(ray.shutdown)
        if is_ours:
            stack.callback(serve.shutdown)
        lock = _lock()
        stack.callback(ray.kill, lock)
        _check_room(cluster, threads)
        serve.start(proxy_location=ProxyLocation.Disabled)
        stack.callback(serve.delete, APP)
        yield _run(config, cluster, threads, serving)


def _join(cluster: ClusterConfig) -> bool:
    """Connect to the cluster, or start one -> whether it was started."""
    env.keep_ray_quiet()
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # it writes lines between those of our log
    shared: dict[str, Any] = {"namespace": APP, "log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address=cluster.ray_address or "auto", **shared)
        return False
    except (ConnectionError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "AuthenticationError" in str(error):
            reason = "it asks for a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as it has them"
        if cluster.ray_address:
            raise BadInput(f"the Ray cluster at {cluster.ray_address} cannot be joined: {reason}") from error
    event("ray_started", text=f"Starting a Ray cluster on this machine: there is none to join ({reason})")
    start_here(**shared)
    return True


def start_here(**options: Any) -> None:
    """Start a cluster that nobody outside of this machine reaches.

    Whoever reaches the ports of one can run programs on it. With any other address than 127.0.0.1 all of
    them are open on every address of the machine; and that one Ray takes for a mistake and the address of a
    network in its place, unless it is kept from doing so.
    """
    resolve = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        ray.init(address="local", include_dashboard=False, _node_ip_address=_LOOPBACK, **options)
    finally:
        services.resolve_ip_for_localhost = resolve


def _lock() -> Any:
    try:
        return ray.remote(_Lock).options(name=_LOCK, num_cpus=0).remote()
    except ValueError:
        raise BadInput(
            "another `puna serve --ray` serves on this Ray cluster; stop it first, or use another cluster"
        ) from None


def _check_room(cluster: ClusterConfig, threads: int) -> None:
    """Raise BadInput where the least number of replicas cannot be placed: Ray would wait without a word."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    n_places = 0
    for has in nodes:
        room = int(has.get("CPU", 0) // threads)
        if cluster.replica_gpus:
            room = min(room, int(has.get("GPU", 0) // cluster.replica_gpus))
        n_places += room
    if n_places < cluster.least:
        gpus = f" and {cluster.replica_gpus} GPUs" if cluster.replica_gpus else ""
        raise BadInput(
            f"{cluster.least} replicas of {threads} threads{gpus} must find room in the Ray cluster, its "
            f"{len(nodes)} nodes have room for {n_places}; give fewer --threads or replicas, or add nodes"
        )


def _run(config: ServerConfig, cluster: ClusterConfig, threads: int, serving: Serving) -> DeploymentHandle:
    scaling: dict[str, Any] = {"num_replicas": cluster.least}
    if cluster.scales:
        window = max(1.0, min(30.0, cluster.scale_up_after))  # that requests are averaged over
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=cluster.min_replicas,
                max_replicas=cluster.max_replicas,
                target_ongoing_requests=cluster.target_requests,
                upscale_delay_s=cluster.scale_up_after,
                downscale_delay_s=cluster.scale_down_after,
                look_back_period_s=window,
            )
        }
    deployment = serve.deployment(
        Replica,
        name="replica",
        ray_actor_options={"num_cpus": threads, "num_gpus": cluster.replica_gpus},
        max_ongoing_requests=config.max_requests,
        max_queued_requests=config.max_requests,
        graceful_shutdown_timeout_s=config.timeout,  # a replica too many ends what it has begun
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5,
        health_check_timeout_s=30,
        max_constructor_retry_count=2,
        logging_config=LoggingConfig(enable_access_log=False),  # the replica has a log
        request_router_config=RequestRouterConfig(
            request_router_class=PrefixRouter,
            request_router_kwargs={"slack": max(1, round(cluster.target_requests / 4))},
        ),
        **scaling,
    )
    try:
        return serve.run(deployment.bind(serving), name=APP, route_prefix=None)
    except RuntimeError as error:
        raise WorkFailed(f"no replica could start: {_reason() or error}") from error


def _reason() -> str:
    """What the replicas that failed said last: the last line of a traceback, without where it was."""
    app = serve.status().applications[APP]
    lines = [line.strip() for found in app.deployments.values() for line in found.message.splitlines()]
    said = [line for line in lines if line.startswith("puna.core.")] or [line for line in lines if line]
    return said[-1].removeprefix("puna.core.") if said else ""
