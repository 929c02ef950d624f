"""Work on what strangers wrote, in a process beside this one that the system ends where it goes too far.

Nothing stops a thread that runs C code, and nothing bounds the memory it takes. So what may take for ever
(compiling a grammar, rendering a template) happens in a process that may die of it. It answers one question
after another, lines of JSON in and out. This file has both ends: Confined asks, `serve` answers.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from math import ceil
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import finalize

from puna.core import WorkFailed

_ROOT = str(Path(__file__).parents[2])
_START = (
    "import runpy, sys; sys.path.insert(0, sys.argv[1]); runpy.run_module(sys.argv[2], run_name='__main__')"
)


class Confined:
    """Asks a module that calls `serve`, one question at a time; safe in any thread.

    The process is started by the first question, ends with this object, and is started again after it died.
    `about` is the first line that it reads.
    """

    def __init__(self, module: str, about: Any = None) -> None:
        self._module = module
        self._about = _line(about)
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = lambda: None
        self._lock = Lock()

    def ask(self, question: str) -> Any:
        """The answer to a question in JSON, which is never None; None if the process died of it."""
        line = question.encode() + b"\n"
        with self._lock:
            process = self._process or self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = b""
            if not answer.endswith(b"\n"):
                self._process = None
                self._end()
                return None
            return json.loads(answer)

    def _started(self) -> subprocess.Popen[bytes]:
        try:
            self._process = process = subprocess.Popen(
                # -P: the folder that the user is in is no place of modules
                [sys.executable, "-P", "-c", _START, _ROOT, self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            raise WorkFailed(
                f"what strangers wrote is tried in a process of its own, which cannot start: {error}"
            ) from None
        self._end = finalize(self, _killed, process)
        assert process.stdin is not None
        process.stdin.write(self._about)
        return process


def _killed(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


# The other end.


def first_line() -> Any:
    """What the process is told about its work."""
    return json.loads(sys.stdin.buffer.readline())


def serve(answer: Callable[[Any], Any], seconds: int, memory: Callable[[int], int]) -> None:
    """Answer questions until there are no more. Each may take whole `seconds` of CPU time, and as many bytes
    as `memory` says of the length of its text, beside what is taken already.
    """
    limit(resource.RLIMIT_CORE, 0)
    for line in _questions():
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit(resource.RLIMIT_CPU, ceil(used.ru_utime + used.ru_stime) + seconds)
        _limit_memory(memory(len(line)))
        sys.stdout.buffer.write(_line(answer(json.loads(line))))
        sys.stdout.buffer.flush()


def _questions() -> Iterator[bytes]:
    while line := sys.stdin.buffer.readline():
        yield line


def _limit_memory(more: int) -> None:
    """Bound what is taken from now on: writable memory, not the addresses that allocators reserve."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[5]) * resource.getpagesize()
    except OSError:  # no such file on this system: then only time is bounded
        return
    limit(resource.RLIMIT_DATA, used + more)


def limit(kind: int, most: int) -> None:
    """Lower a limit of this process, or raise one that was lowered."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
