"""`puna serve` as a process of its own, and what can be seen of it from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from random import Random
from time import sleep
from typing import Any

import httpx

from puna.weights.store import resolve

_WORDS = ["grass", "stone", "river", "cloud", "snow", "lake", "wind", "bird", "fox", "hill", "star", "wool"]


@dataclass
class Served:
    """A server that runs."""

    url: str
    process: subprocess.Popen[bytes]

    @property
    def rss_mb(self) -> float:
        """Resident memory, megabytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("the server has ended")

    @cached_property
    def model(self) -> str:
        name: str = httpx.get(f"{self.url}/v1/models").json()["data"][0]["id"]
        return name

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        found = [float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name]
        if not found:
            raise KeyError(name)
        return sum(found)

    def fill_cache(self, n_tokens: int = 1500) -> None:
        """Prompts that nobody has sent before, until all memory of the key/value cache has been touched:
        the system gives it block by block."""
        n_blocks = self.metric("puna_engine_cache_blocks")
        n_prompts = ceil(n_blocks * self.metric("puna_engine_cache_block_tokens") / n_tokens)
        words = Random(0)
        for _ in range(n_prompts + 1):
            text = " ".join(words.choices(_WORDS, k=n_tokens))
            tokens = self._post("/tokenize", {"model": self.model, "prompt": text})["tokens"][:n_tokens]
            self._post("/v1/completions", {"model": self.model, "prompt": tokens, "max_tokens": 1})
        n_touched = self.metric("puna_engine_cache_blocks_cached")
        if n_touched < 0.9 * n_blocks:
            raise RuntimeError(f"{n_prompts} prompts filled {n_touched:.0f} of {n_blocks:.0f} blocks")

    def _post(self, path: str, body: dict[str, object]) -> Any:
        answer = httpx.post(self.url + path, json=body, timeout=120)
        answer.raise_for_status()
        return answer.json()

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start(model: str, home: Path, *flags: str, database: str = "", others: Sequence[str] = ()) -> Served:
    """Start a server whose keys, ledger and journal lie in `home`; it has its models loaded on return."""
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "puna", "serve", str(resolve(model)), *others, "--port", "0"]
    command += ["--database", database or f"sqlite:///{home}/ledger.db", *flags]
    log = home / f"server-{len(list(home.glob('server-*.log')))}.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, env={**os.environ, "PUNA_HOME": str(home)})
    while process.poll() is None:
        for line in log.read_text().splitlines():
            if " at http" in line:
                return Served(line.split(" at ")[1].split("/v1")[0], process)
        sleep(0.05)
    raise RuntimeError(f"the server did not start: {log.read_text()}")


@contextmanager
def served(model: str, home: Path, *flags: str, others: Sequence[str] = ()) -> Iterator[Served]:
    server = start(model, home, *flags, others=others)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.terminate()
            server.process.wait(60)
