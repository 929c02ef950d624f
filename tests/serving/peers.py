"""Tokens per second and time to the first token beside other servers, in turns, under the same load.

Each server is given as a name and a command that serves at PORT; it runs alone on the machine while it is
measured, and the next round begins with another one.
"""

from __future__ import annotations

import json
import shlex
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

import httpx
from serving.figure import Figure

_START_S = 300


@dataclass
class Rival:
    """A server, and what was measured of it for each number of clients."""

    name: str
    command: str  # {port} stands for the port
    rates: dict[int, list[float]] = field(default_factory=dict)  # output tokens per second
    first: dict[int, list[float]] = field(default_factory=dict)  # p95 of the time to the first token, ms


def throughput(
    ours: Rival, others: list[Rival], clients: tuple[int, ...], rounds: int, port: int
) -> list[Figure]:
    """Our rate as a multiple of each other's, and our p95 as a share of theirs: medians over rounds."""
    for _ in range(rounds):
        for rival in (ours, *others):
            _measure(rival, clients, port)
    figures = []
    for n in clients:
        for rival in others:
            rate = statistics.median(a / b for a, b in zip(ours.rates[n], rival.rates[n], strict=True))
            first = statistics.median(a / b for a, b in zip(ours.first[n], rival.first[n], strict=True))
            figures += [
                Figure(f"{n} clients: tokens per second beside {rival.name}", rate, 3, "x"),
                Figure(
                    f"{n} clients: p95 to first token beside {rival.name}", first, 0.5, "x", is_least=False
                ),
            ]
    return figures


def _measure(rival: Rival, clients: tuple[int, ...], port: int) -> None:
    command = shlex.split(rival.command.format(port=port))
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        model = _ready(process, port)
        for n in clients:
            found = _load(model, n, port)
            rival.rates.setdefault(n, []).append(found["output_tokens_per_s"])
            rival.first.setdefault(n, []).append(found["ttft_ms"]["p95"])
            print(
                f"{rival.name} {n} clients: {rival.rates[n][-1]:.1f} tok/s, p95 {rival.first[n][-1]:.0f} ms",
                flush=True,
            )
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _ready(process: subprocess.Popen[bytes], port: int) -> str:
    """Wait for the server; the name of its model."""
    until = monotonic() + _START_S
    while monotonic() < until and process.poll() is None:
        try:
            name: str = httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["data"][0]["id"]
            return name
        except (httpx.HTTPError, KeyError, IndexError, ValueError):
            sleep(0.5)
    raise RuntimeError(f"{process.args} does not serve at port {port}")


def _load(model: str, n: int, port: int) -> dict:  # type: ignore[type-arg]
    """Closed loop of n clients: mixed lengths, half of each prompt shared with others.

    Clients begin over ten seconds: a start of all in one instant would be most of the slowest answers.
    """
    command = [sys.executable, "-m", "puna", "loadtest", f"http://127.0.0.1:{port}", "--model", model]
    command += [
        "--concurrency",
        str(n),
        "--requests",
        str(n * 6),
        "--warmup",
        str(n),
        "--prefix-share",
        "0.5",
        "--ramp",
        "10",
    ]
    command += ["--ignore-end", "--json"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict = json.loads(out)  # type: ignore[type-arg]
    return found


def read_rivals(file: Path) -> list[Rival]:
    """Lines of `name = command`."""
    pairs = (line.split("=", 1) for line in file.read_text().splitlines() if line.strip())
    return [Rival(name.strip(), command.strip()) for name, command in pairs]
