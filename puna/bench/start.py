"""Cold start in a process of its own: `python -m puna.bench.start FILE THREADS CACHE_TYPE`.

Prints one JSON object once the first token of an answer is there. Memory is the process's own peak: what the
parent took for measuring must not count.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import astuple, dataclass
from pathlib import Path

from puna.core import WorkFailed
from puna.llm.backend import NATIVE, Backend

CACHE_TOKENS = 4096
PROMPT = 32  # tokens


@dataclass(frozen=True, slots=True)
class Start:
    load_s: float  # opening the file and packing its weights
    first_token_s: float  # from the start of the process to the first token after a short prompt
    peak_bytes: int  # of main memory, mapped pages of the file included


def cold_start(model: Path, threads: int, cache_type: str, target: str, backend: Backend = NATIVE) -> Start:
    """Start the process and wait for its first token. Raises WorkFailed."""
    command = [sys.executable, "-m", "puna.bench.start", str(model), str(threads), cache_type, target]
    command += map(str, astuple(backend))
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - begin
        rest = process.stderr.read().strip()
    if process.returncode != 0:
        raise WorkFailed(f"the cold start ended with status {process.returncode}: {rest[-200:]}")
    found = json.loads(line)
    return Start(found["load_s"], seconds, found["peak_bytes"])


def peak_bytes() -> int:
    """The most memory this process ever held at once.

    Linux's own row for it, because getrusage reports the parent's peak too where that was larger.
    """
    status = Path("/proc/self/status")
    if status.exists():
        rows = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(rows["VmHWM"].split()[0]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    from puna.bench.jobs import Job
    from puna.bench.ours import Ours

    model, threads, cache_type, target, name, device, weights, ranks = sys.argv[1:]
    backend = Backend(name, device, weights, int(ranks))
    ours = Ours(Path(model), CACHE_TOKENS, int(threads), cache_type, target, backend)
    ours.run(Job("prefill", PROMPT))
    print(json.dumps({"load_s": ours.load_seconds, "peak_bytes": peak_bytes()}), flush=True)


if __name__ == "__main__":
    main()
