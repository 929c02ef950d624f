"""A Hugging Face hub on the loopback: the requests that a pull makes, with the accidents of real networks."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "c0ffee" + "0" * 34


@dataclass
class FakeHub:
    """Repositories by name; each maps a file name to its bytes."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    ranges: list[str | None] = field(default_factory=list)  # the Range header of each download, in order
    break_after: int | None = None  # close the next download's connection after that many bytes
    knows_ranges: bool = True
    pause: float = 0.0  # seconds between pieces of 64 KiB
    url: str = ""

    def start(self) -> ThreadingHTTPServer:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        if path.startswith("/api/models/"):
            parts = path.removeprefix("/api/models/").split("/")
            self._listing(request, "/".join(parts[:2]), parts[3] if len(parts) > 3 else "main")
        else:
            owner, repo, _, _, *name = path.strip("/").split("/")
            self._download(request, f"{owner}/{repo}", "/".join(name))

    def _listing(self, request: BaseHTTPRequestHandler, repo: str, revision: str) -> None:
        if repo not in self.repos:
            return _refuse(request, 401, "RepoNotFound")
        if revision not in ("main", "v1"):
            return _refuse(request, 404, "RevisionNotFound")
        siblings = [
            {"rfilename": name, "size": len(data), "blobId": "b" * 40, "lfs": _lfs(data)}
            for name, data in self.repos[repo].items()
        ]
        body = json.dumps({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def _download(self, request: BaseHTTPRequestHandler, repo: str, name: str) -> None:
        wanted = request.headers.get("Range")
        self.ranges.append(wanted)
        if repo in self.gated:
            return _refuse(request, 403, "GatedRepo")
        data = self.repos[repo][name]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.knows_ranges else 0
        request.send_response(206 if self.knows_ranges and wanted else 200)
        if data[start:]:
            request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        end, self.break_after = (self.break_after or len(data)), None
        for at in range(start, end, 1 << 16):
            try:
                request.wfile.write(data[at : min(end, at + (1 << 16))])
            except (BrokenPipeError, ConnectionResetError):
                return
            time.sleep(self.pause)


def _lfs(data: bytes) -> dict[str, object]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}


def _refuse(request: BaseHTTPRequestHandler, status: int, code: str) -> None:
    request.send_response(status)
    request.send_header("X-Error-Code", code)
    request.send_header("Content-Length", "0")
    request.end_headers()
