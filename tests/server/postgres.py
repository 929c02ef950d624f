"""Debian's PostgreSQL for tests: a real server of our own, started, killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest


def _tools() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if found:
        return found[-1].parent
    on_path = shutil.which("postgres")
    return Path(on_path).parent if on_path else None


def has_postgres() -> bool:
    return _tools() is not None


class Postgres:
    """A cluster in `folder`, listening on a free port of loopback.

    Not a folder of pytest's, which are for their owner alone: the server may have to be another user.
    """

    def __init__(self, folder: Path) -> None:
        tools = _tools()
        if tools is None:
            pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
        self._tools = tools
        self._as: list[str] = []
        if os.getuid() == 0:  # which the server refuses
            if shutil.which("setpriv") is None:
                pytest.skip("PostgreSQL refuses root, and there is no setpriv to become another user")
            self._as = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
            shutil.chown(folder, "postgres", "postgres")
        self._data = folder / "data"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self._call("initdb", "-D", self._data, "-U", "puna", "-A", "trust", "-N", "-E", "UTF8", "--locale=C")

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://puna@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        arguments = ["-D", str(self._data), "-p", str(self.port), "-k", str(self._data), "-h", "127.0.0.1"]
        tuned = ["-c", "shared_buffers=16MB", "-c", "max_connections=40"]
        self._process = subprocess.Popen(
            [*self._as, str(self._tools / "postgres"), *arguments, *tuned],
            cwd=self._data,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until = time.monotonic() + 30
        while subprocess.run(
            [str(self._tools / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        ).returncode:
            assert time.monotonic() < until, "PostgreSQL did not start"
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9 of the server and its children, in the middle of whatever they do."""
        assert self._process is not None
        for child in _children(self._process.pid):
            _kill(child)
        self._process.kill()
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # at once; nobody needs its data
            self._process.wait(timeout=30)
            self._process = None

    def create(self, name: str) -> str:
        """A new database -> its URL."""
        self._call("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "puna", name)
        return self.url(name)

    def _call(self, tool: str, *arguments: object) -> None:
        command = [*self._as, str(self._tools / tool), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self._data.parent)
        assert done.returncode == 0, done.stderr


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
