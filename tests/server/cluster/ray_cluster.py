"""A Ray cluster of two nodes on this machine, and `puna serve --ray` on it, as an operator runs them."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

from puna import env

_DEADLINE_S = 120
LOOPBACK = "127.0.0.2"  # Ray takes 127.0.0.1 for a mistake, and the address of a network in its place


def eventually(check: Callable[[], Any], what: str) -> Any:
    """What `check` gives once that is true."""
    until = time.monotonic() + _DEADLINE_S
    while not (found := check()):
        assert time.monotonic() < until, what
        time.sleep(0.1)
    return found


@contextmanager
def two_nodes() -> Iterator[str]:
    """The address of a cluster whose nodes have one processor each; it ends with its own processes only."""
    # its ports are open on all addresses, whatever it is told: only those who know this may use them. Ray
    # reads it when it is imported, so the cluster gets a process of its own
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    keeper = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        line = keeper.stdout.readline()
        assert line.startswith("address "), f"no cluster: {line}"
        yield line.split()[1]
    finally:
        keeper.stdin.close()
        keeper.wait(60)
        keeper.stdout.close()


def keep_cluster() -> None:
    """Start a cluster, say its address, and keep it until standard input ends."""
    env.keep_ray_quiet()
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        for _ in range(2):
            agents = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
            # given a port, a node does not wait for its agent, which a busy machine starts too late for it
            ports = dict(zip((*agents, "runtime_env_agent_port"), free_ports(4), strict=True))
            cluster.add_node(
                num_cpus=1,
                include_dashboard=False,
                include_log_monitor=False,
                no_monitor=True,
                node_ip_address=LOOPBACK,
                object_store_memory=100 << 20,
                **ports,
            )
        print("address", cluster.address, flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()


def free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    try:
        for found in sockets:
            found.bind(("127.0.0.1", 0))
        return [found.getsockname()[1] for found in sockets]
    finally:
        for found in sockets:
            found.close()


def replica_pids(parent: int | None = None) -> list[int]:
    """Processes of replicas among the descendants of this process."""
    found = []
    for task in Path(f"/proc/{parent or os.getpid()}/task").glob("*/children"):
        for child in task.read_text().split():
            title = Path(f"/proc/{child}/cmdline")
            with suppress(OSError):  # it has ended since
                found += [int(child)] if b"ServeReplica:puna" in title.read_bytes() else []
                found += replica_pids(int(child))
    return sorted(found)


class Served:
    """A running `puna serve --ray`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.lines: list[dict[str, Any]] = []
        self.rest: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        self.url: str = eventually(lambda: self.event("start") or self._ended(), "no start")["url"]

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.rest.append(line)

    def _ended(self) -> None:
        assert self._process.poll() is None, "".join(self.rest)

    def event(self, name: str) -> dict[str, Any] | None:
        return next((line for line in self.lines if line.get("event") == name), None)

    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def n_replicas(self) -> int:
        n: int = httpx.get(f"{self.url}/ready").json()["replicas"]
        return n

    def stop(self) -> int:
        """As an operator does -> its exit code. A second time does nothing."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(60)


def command(model: Path, database: str, *options: str) -> list[str]:
    given = ["--port", "0", "--log-format", "json", "--threads", "1", "--name", "tiny", "--batch", "64"]
    return [
        sys.executable,
        "-m",
        "puna",
        "serve",
        str(model),
        "--ray",
        "--database",
        database,
        *given,
        *options,
    ]


@contextmanager
def serving(model: Path, database: str, home: Path, *options: str) -> Iterator[Served]:
    process = subprocess.Popen(
        command(model, database, *options),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PUNA_HOME": str(home)},
        cwd=home,
    )
    try:
        yield Served(process)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
        assert process.stderr is not None
        process.stderr.close()


if __name__ == "__main__":
    keep_cluster()
