"""Whether a grammar can be compiled at a bounded cost, found out beside this process.

No limit of llguidance's bounds its compiler: thirty patterns in an allOf, or a multipleOf of a large prime,
take it minutes or gigabytes, some thousand references its stack, and nothing can stop it in a thread. So
every grammar is compiled first in a process that the system ends where it goes too far (trial.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import finalize

from puna.core import WorkFailed

_SCRIPT = Path(__file__).with_name("trial.py")


class Trials:
    """One grammar at a time, for a vocabulary with these control tokens; safe in any thread.

    The process is started by the first grammar, ends with this one, and is started again after it died.
    """

    def __init__(self, control_tokens: Sequence[str], limits: Mapping[str, Any]) -> None:
        self._about = _line([list(control_tokens), dict(limits)])
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = lambda: None
        self._lock = Lock()

    def is_bounded(self, grammar: str) -> bool:
        """Whether the grammar can be compiled within the limits of trial.py."""
        with self._lock:
            process = self._process or self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(_line(grammar))
                process.stdin.flush()
                survived = process.stdout.read(1) == b"."
            except BrokenPipeError:
                survived = False
            if not survived:
                self._process = None
                self._end()
            return survived

    def _started(self) -> subprocess.Popen[bytes]:
        try:
            self._process = process = subprocess.Popen(
                [sys.executable, "-P", str(_SCRIPT)],  # -P: the folder of the script is no place of modules
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            raise WorkFailed(
                f"grammars are tried in a process of their own, which cannot start: {error}"
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
