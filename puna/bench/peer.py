"""Other engines, each in a process and a Python of its own, that run one job at a time when asked.

Protocol, one JSON object a line: first the model, then jobs (the fields of jobs.Job) on stdin; on stdout
`{"version", "load_s"}`, or `{"missing": package}`, then `{"seconds"}` for every job.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any, Self

from puna import env
from puna.bench.jobs import Job
from puna.core import BadValue, WorkFailed

_SCRIPTS = Path(__file__).parent / "peers"


@dataclass(frozen=True, slots=True)
class PeerSpec:
    """Which engine, on what: `model` is the file or folder that it opens."""

    engine: str  # a key of ENGINES
    python: str  # interpreter that has the engine
    model: Path
    threads: int
    quant: str | None = None  # llama.cpp: requantize the model to this first
    length: int = 0  # vLLM: positions that a sequence may have
    device: str = "cpu"  # transformers, and its type of weights
    dtype: str = "bf16"


@dataclass(frozen=True, slots=True)
class _Engine:
    script: str
    settings: dict[str, str]  # environment variables
    preloads: tuple[str, ...] = ()  # libraries that its manual asks for, under the prefix of its Python


ENGINES = {
    "llama.cpp": _Engine("llama_cpp_peer.py", {}),
    "vllm": _Engine(
        "vllm_peer.py",
        {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
        },
        ("lib/libiomp5.so", "lib/python*/site-packages/vllm/libs/libtcmalloc*.so*"),
    ),
    "transformers": _Engine(
        "transformers_peer.py", {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    ),
}


class Peer:
    """A running engine. Use as a context manager."""

    def __init__(self, spec: PeerSpec, folder: Path) -> None:
        """Start it and load the model; `folder` may be written to. Raises BadValue, WorkFailed."""
        self.spec = spec
        with ExitStack() as stack:
            self._log: IO[bytes] = stack.enter_context(TemporaryFile())
            self._process = _start(spec, self._log)
            stack.callback(self._end)
            reply = self._ask(asdict(spec) | {"model": str(spec.model), "folder": str(folder)})
            self.version: str = reply["version"]
            self.load_seconds: float = reply["load_s"]
            self._resources = stack.pop_all()

    def run(self, job: Job) -> float:
        """Seconds of the timed part of `job`."""
        seconds: float = self._ask(asdict(job))["seconds"]
        return seconds

    def _ask(self, value: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(value) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        for line in self._process.stdout:
            if line.startswith("{"):  # engines greet on stdout too
                reply: dict[str, Any] = json.loads(line)
                if "missing" in reply:
                    raise self._missing(reply["missing"])
                return reply
        raise self._failure()

    def _missing(self, package: str) -> BadValue:
        python = self.spec.python
        return BadValue(
            f"{self.spec.engine} is not installed for {python}; run `{python} -m pip install {package}`, or "
            "name another interpreter with --peer-python"
        )

    def _failure(self) -> WorkFailed:
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        last = f": {lines[-1]}" if lines else ""
        return WorkFailed(f"{self.spec.engine} ended with status {self._process.returncode}{last}")

    def close(self) -> None:
        self._resources.close()

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _start(spec: PeerSpec, log: IO[bytes]) -> subprocess.Popen[str]:
    engine = ENGINES[spec.engine]
    settings = engine.settings | {"OMP_NUM_THREADS": str(spec.threads)}
    prefix = Path(spec.python).parent.parent
    preloads = [str(path) for pattern in engine.preloads for path in prefix.glob(pattern)]
    if preloads:
        settings["LD_PRELOAD"] = ":".join(preloads)
    try:
        return subprocess.Popen(
            [spec.python, str(_SCRIPTS / engine.script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=env.for_child(**settings),
            text=True,
        )
    except OSError as error:
        raise BadValue(
            f"--peer-python must be a Python interpreter, got {spec.python}: {error.strerror}"
        ) from None
