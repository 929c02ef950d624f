"""One batch, from the check of its lines to its files."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from puna.core import PunaError
from puna.server.batches.inside import Answer, BatchLine, send
from puna.server.batches.lines import Line, check, parsed, raw_lines
from puna.server.errors import ApiError, bad, body_of
from puna.server.openai.wire import token_counts
from puna.server.storage import batches
from puna.server.storage.batches import Batch, Lost
from puna.server.storage.database import DatabaseUnavailable
from puna.server.storage.files import StoredFile

if TYPE_CHECKING:
    from puna.server.batches.runner import Runner

_log = logging.getLogger(__name__)
_RETRY_S = 1.0
_PAGE = 500
_MISSING = {
    "cancelled": ("batch_cancelled", "the batch was cancelled before this line was answered"),
    "expired": ("batch_expired", "the batch expired before this line was answered"),
}


class BatchRun:
    """Runs a batch that its server owns. Ends early, and leaves the batch to others, when the server goes."""

    def __init__(self, runner: Runner, batch: Batch) -> None:
        self.stopped = asyncio.Event()  # lines that are being answered are told that their client is gone
        self._runner = runner
        self._batch = batch
        self._id: str = batch["id"]
        self._database = runner.service.accounts.database
        self._outcome = "cancelled" if batch["status"] == "cancelling" else "completed"
        self._is_left = False  # to whoever owns it next
        self._path = runner.service.files.path(batch["input_file_id"])
        self._most_bytes = runner.service.config.max_body_mb << 20
        self._reading = asyncio.Lock()

    def cancel(self) -> None:
        """Because a client asked for it."""
        if not self.stopped.is_set():
            self._outcome = "cancelled"
            self.stopped.set()

    def leave(self) -> None:
        """Because the server goes, or another one has taken over."""
        self._is_left = True
        self.stopped.set()

    def _expire(self) -> None:
        if not self.stopped.is_set():
            self._outcome = "expired"
            self.stopped.set()

    @property
    def _is_over(self) -> bool:
        return self.stopped.is_set() or self._runner.service.is_draining

    async def run(self) -> None:
        left_s = (self._batch["expires_at"] - datetime.now(UTC)).total_seconds()
        timer = asyncio.get_running_loop().call_later(max(0.0, left_s), self._expire)
        try:
            await self._run()
        except Lost:
            _log.warning("batch %s goes on at another server", self._id)
        except PunaError as error:  # it is taken up again
            _log.error("batch %s is held up: %s", self._id, error)
        except OSError as error:
            _log.error("batch %s cannot be read: %s", self._id, error)
            message = "the input file cannot be read from this server's disk; upload it again"
            await self._fail([{"code": "file_unreadable", "line": None, "message": message, "param": None}])
        finally:
            timer.cancel()

    async def _run(self) -> None:
        if self._outcome == "completed" and self._batch["status"] == "validating" and not await self._check():
            return
        if self._outcome == "completed" and self._batch["status"] != "finalizing":
            is_whole = await self._run_lines()
            if self._is_left or not (is_whole or self.stopped.is_set()):
                return
        await self._finish()

    async def _check(self) -> bool:
        """Whether all lines are well formed; the batch fails otherwise."""
        found = await asyncio.to_thread(check, self._path, self._batch["endpoint"], self._most_bytes)
        if found.errors:
            await self._fail(found.errors)
            return False
        here = {card.name for card in self._runner.service.models.cards()}
        models = [name for name in found.models if name in here]
        owner = self._runner.id
        await asyncio.to_thread(batches.begin, self._database, owner, self._id, found.n_lines, models)
        self._batch["n_total"] = found.n_lines
        return True

    async def _fail(self, errors: list[dict[str, Any]]) -> None:
        with suppress(Lost):
            await asyncio.to_thread(batches.fail, self._database, self._runner.id, self._id, errors)

    async def _run_lines(self) -> bool:
        """Answer what has no result yet -> whether everything has one now."""
        done = await asyncio.to_thread(batches.done, self._database, self._id)
        lines = raw_lines(self._path, self._most_bytes)
        n_workers = self._runner.service.config.batch_requests
        workers = [asyncio.create_task(self._work(lines, done)) for _ in range(n_workers)]
        try:
            return all(await asyncio.gather(*workers))
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers)
            lines.close()

    async def _work(self, lines: Iterator[tuple[int, bytes]], done: set[int]) -> bool:
        """Take lines until there are none (True), or the batch is over."""
        while not self._is_over:
            async with self._reading:
                item = await asyncio.to_thread(next, lines, None)
            if item is None:
                return True
            if item[0] in done:
                continue
            line = parsed(*item, self._batch["endpoint"], self._most_bytes)
            answer = await self._answer(line)
            if answer is None:
                return False
            await self._record(line, answer)
        return False

    async def _answer(self, line: Line) -> Answer | None:
        """None where it was cut off."""
        if line.problem is not None:
            return _refused(bad(f"body.{line.problem.partition(' ')[0]}", line.problem))
        request = BatchLine(self._id, line.number, self._batch["key_id"])
        runner = self._runner
        while True:
            async with runner.slots:
                if self._is_over:
                    return None
                answer = await send(runner.app, request, self._batch["endpoint"], line.content, self.stopped)
            if answer.status not in (429, 503):
                return answer
            if self._is_over:
                return None  # cut off; another run answers it, or nobody has to
            wait_s = answer.headers.get("retry-after")
            if wait_s is None:
                return answer  # there is no use in waiting
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopped.wait(), float(wait_s))

    async def _record(self, line: Line, answer: Answer) -> None:
        """Keep a result, however long the database is away."""
        request_id = BatchLine(self._id, line.number, self._batch["key_id"]).request_id
        response = {
            "status_code": answer.status,
            "request_id": answer.headers.get("x-request-id", request_id),
            "body": answer.json(),
        }
        result = {
            "id": f"batch_req_{request_id}",
            "custom_id": line.custom_id,
            "response": response,
            "error": None,
        }
        is_good = 200 <= answer.status < 300

        def record() -> None:
            owner = self._runner.id
            batches.record(self._database, owner, self._id, line.number, result, is_good=is_good)

        while True:
            try:
                return await asyncio.to_thread(record)
            except DatabaseUnavailable as error:
                if self._is_left:
                    raise
                _log.warning("a result of batch %s waits for the database: %s", self._id, error)
                await asyncio.sleep(_RETRY_S)

    async def _finish(self) -> None:
        database, owner = self._database, self._runner.id
        if self._outcome in _MISSING and self._batch["n_total"]:
            await asyncio.to_thread(self._record_missing)
        if self._outcome == "completed":
            await asyncio.to_thread(batches.set_finalizing, database, owner, self._id)
        usage = _Usage()
        output = await asyncio.to_thread(self._write, True, usage)
        errors = await asyncio.to_thread(self._write, False, usage)
        await asyncio.to_thread(
            batches.finish, database, owner, self._batch, self._outcome, output, errors, usage.to_json()
        )

    def _record_missing(self) -> None:
        """An error for each line that was not answered, so that no custom_id is missing."""
        code, message = _MISSING[self._outcome]
        error = {"code": code, "message": message}
        done = batches.done(self._database, self._id)
        some: dict[int, dict[str, Any]] = {}
        for number, raw in raw_lines(self._path, self._most_bytes):
            if number in done:
                continue
            line = parsed(number, raw, self._batch["endpoint"], self._most_bytes)
            request_id = BatchLine(self._id, number, self._batch["key_id"]).request_id
            some[number] = {
                "id": f"batch_req_{request_id}",
                "custom_id": line.custom_id,
                "response": None,
                "error": error,
            }
            if len(some) == _PAGE:
                batches.record_unrun(self._database, self._runner.id, self._id, some)
                some = {}
        if some:
            batches.record_unrun(self._database, self._runner.id, self._id, some)

    def _write(self, is_good: bool, usage: _Usage) -> StoredFile | None:
        """Write the output or the errors to a file whose id is the same in every run; None without lines."""
        kind = "output" if is_good else "errors"
        files = self._runner.service.files
        n_bytes = 0
        first = next(batches.results(self._database, self._id, is_good=is_good), None)
        if first is None:
            return None

        def encoded() -> Iterator[bytes]:
            nonlocal n_bytes
            for result in batches.results(self._database, self._id, is_good=is_good):
                usage.add(result)
                line = json.dumps(result, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
                n_bytes += len(line)
                yield line

        id = "file-" + hashlib.sha256(f"{self._id}:{kind}".encode()).hexdigest()[:32]
        files.write(id, encoded())
        now = datetime.now(UTC)
        seconds = self._batch["request"].get("output_expires_after")
        keep = files.keep if seconds is None else timedelta(seconds=seconds)
        name = f"{self._id}_{kind}.jsonl"
        return StoredFile(id, self._batch["tenant"], name, "batch_output", n_bytes, now, now + keep)


def _refused(error: ApiError) -> Answer:
    return Answer(error.status, {}, json.dumps(body_of(error)).encode())


class _Usage:
    """Tokens of all results, by the names of either API."""

    def __init__(self) -> None:
        self.n_input = self.n_cached = self.n_output = 0

    def add(self, result: dict[str, Any]) -> None:
        body = (result["response"] or {}).get("body")
        found = (body.get("usage") if isinstance(body, dict) else None) or {}
        details = found.get("prompt_tokens_details") or found.get("input_tokens_details") or {}
        self.n_input += found.get("prompt_tokens", found.get("input_tokens", 0))
        self.n_output += found.get("completion_tokens", found.get("output_tokens", 0))
        self.n_cached += details.get("cached_tokens", 0)

    def to_json(self) -> dict[str, Any]:
        return token_counts(self.n_input, self.n_cached, self.n_output)
