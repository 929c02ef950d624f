"""/v1/batches, through the openai client: answers, errors, cancelling, expiry, and servers that die."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch
from server.conftest import Running, Start, open_accounts
from server.test_operations import Slow, until
from sqlalchemy import update

from puna.core import Request
from puna.server.batches import runner
from puna.server.config import ServerConfig
from puna.server.storage.database import open_database
from puna.server.storage.tables import batches
from puna.server.tenants.limits import Limits
from puna.server.tenants.queries import page
from puna.server.tiers import FLEX

CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "cancelled", "expired")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "POLL_S", 0.05)


def line(i: int, url: str = CHAT, **changes: Any) -> dict[str, Any]:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": f"Hello {i}"}],
        "max_tokens": 5,
        **changes,
    }
    return {"custom_id": f"r{i}", "method": "POST", "url": url, "body": body}


def create(client: openai.OpenAI, lines: Sequence[Any], endpoint: Any = CHAT) -> Batch:
    data = b"\n".join(item if isinstance(item, bytes) else json.dumps(item).encode() for item in lines)
    file = client.files.create(file=("b.jsonl", data), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")


def ended(client: openai.OpenAI, batch: Batch) -> Batch:
    found: list[Batch] = []

    def is_over() -> bool:
        found[:] = [client.batches.retrieve(batch.id)]
        return found[0].status in ENDED

    until(is_over)
    return found[0]


def results(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    """By custom_id, each of which must be there once."""
    if file_id is None:
        return {}
    found = [json.loads(item) for item in client.files.content(file_id).text.split("\n")[:-1]]
    by_id = {item["custom_id"]: item for item in found}
    assert len(by_id) == len(found)
    return by_id


def test_every_line_has_its_answer(server: Running) -> None:
    client = server.openai()
    lines = [line(i, temperature=i % 2, seed=i) for i in range(20)]
    lines[3]["body"]["model"] = "nothing"
    lines[5]["body"]["max_tokens"] = -1
    lines[7]["body"]["stream"] = True
    batch = ended(client, create(client, [*lines, b"", b"  "]))
    assert (batch.status, batch.errors, batch.model) == ("completed", None, "tiny")
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (20, 17, 3)
    good, wrong = results(client, batch.output_file_id), results(client, batch.error_file_id)
    assert [*good] == [f"r{i}" for i in range(20) if i not in (3, 5, 7)]
    statuses = {id: item["response"]["status_code"] for id, item in wrong.items()}
    assert statuses == {"r3": 404, "r5": 400, "r7": 400}
    params = [item["response"]["body"]["error"]["param"] for item in wrong.values()]
    assert params == ["model", "max_tokens", "body.stream"]
    for i in (0, 1, 19):
        answer = client.chat.completions.create(**lines[i]["body"])
        told = good[f"r{i}"]["response"]["body"]
        assert told["choices"][0]["message"]["content"] == answer.choices[0].message.content
    rows = {row.request_id: row for row in page(server.service.accounts.database)}
    used = [rows[item["response"]["request_id"]] for item in good.values()]
    assert batch.usage is not None
    assert batch.usage.output_tokens == sum(row.output_tokens for row in used) == 17 * 5
    assert batch.usage.input_tokens == sum(row.prompt_tokens for row in used)
    assert client.files.retrieve(batch.output_file_id or "").purpose == "batch_output"
    assert client.batches.list(limit=1).data[0].id == batch.id


def test_lines_wait_behind_requests_of_people(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run at the priority of the flexible tier, whatever they ask for, and say so."""
    asked: dict[str, int] = {}
    submit = server.llm.submit

    def noted(request: Request) -> Any:
        asked[server.llm.tokenizer.decode(request.prompt)] = request.priority
        return submit(request)

    monkeypatch.setattr(server.llm, "submit", noted)
    client = server.openai()
    url, body = "/v1/completions", {"model": "tiny", "max_tokens": 1}
    tiers: list[dict[str, Any]] = [{}, {"service_tier": "default"}, {"service_tier": "flex"}]
    lines = [
        {"custom_id": f"r{i}", "method": "POST", "url": url, "body": {**body, "prompt": f"line {i}", **tier}}
        for i, tier in enumerate(tiers)
    ]
    batch = ended(client, create(client, lines, url))
    client.completions.create(**body, prompt="people")
    assert asked == {"line 0": FLEX, "line 1": FLEX, "line 2": FLEX, "people": 0}
    assert len(results(client, batch.output_file_id)) == 3


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/completions", {"prompt": "Once", "model": "tiny"}),
        ("/v1/responses", {"input": "Hello", "model": "tiny", "max_output_tokens": 4}),
    ],
)
def test_other_endpoints(server: Running, endpoint: str, body: dict[str, Any]) -> None:
    client = server.openai()
    lines = [{"custom_id": f"r{i}", "method": "POST", "url": endpoint, "body": body} for i in range(3)]
    batch = ended(client, create(client, lines, endpoint))
    good = results(client, batch.output_file_id)
    assert [*good] == ["r0", "r1", "r2"]
    if endpoint == "/v1/responses":
        told = good["r1"]["response"]["body"]
        assert client.responses.retrieve(told["id"]).output_text == told["output"][0]["content"][0]["text"]


WRONG_FILES: list[tuple[list[Any], int, str]] = [
    ([], 1, "at least one line"),
    ([line(0), b"{nonsense"], 2, "must be JSON"),
    ([b"[]"], 1, "JSON object"),
    ([line(0), line(1), line(0)], 3, "must be unique, line 1 has it"),
    ([{**line(0), "custom_id": 5}], 1, "custom_id must be a text"),
    ([{**line(0), "method": "GET"}], 1, "method must be POST"),
    ([line(0, url="/admin/usage")], 1, "url must be the batch's endpoint"),
    ([{**line(0), "body": "x"}], 1, "body must be an object"),
    ([{**line(0), "body": {}}], 1, "body.model must be a name"),
    ([{**line(0), "priority": 1}], 1, "found 'priority' as well"),
    ([b'{"a":' * 100_000], 1, "must be JSON"),
]


@pytest.mark.parametrize(("lines", "number", "said"), WRONG_FILES)
def test_a_file_that_is_malformed_fails_before_it_costs(
    server: Running, lines: list[Any], number: int, said: str
) -> None:
    client = server.openai()
    batch = ended(client, create(client, lines))
    assert batch.status == "failed"
    assert batch.errors is not None
    (error,) = batch.errors.data or ()
    assert error.line == number
    assert said in (error.message or "")
    assert (batch.output_file_id, batch.error_file_id) == (None, None)


def test_wrong_batches_are_told_so(server: Running) -> None:
    client = server.openai()
    file = client.files.create(file=("b", b"x"), purpose="batch")
    picture = client.files.create(file=("b", b"x"), purpose="vision")
    good: dict[str, Any] = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    for changes, status, param in (
        ({"endpoint": "/admin/usage"}, 400, "endpoint"),
        ({"endpoint": "/v1/files"}, 400, "endpoint"),
        ({"input_file_id": "file-x"}, 404, "input_file_id"),
        ({"input_file_id": picture.id}, 400, "input_file_id"),
        ({"completion_window": "200h"}, 400, "completion_window"),
        ({"prioriti": 1}, 400, "prioriti"),
    ):
        answer = server.post("/v1/batches", {**good, **changes})
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    for ask in (client.batches.retrieve, client.batches.cancel):
        with pytest.raises(openai.NotFoundError, match="there is no batch"):
            ask("batch_x")


def test_a_batch_is_cancelled(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client = server.openai()
    slow = Slow(server, monkeypatch)
    slow.close()
    batch = create(client, [line(i, ignore_eos=True) for i in range(30)])
    until(lambda: bool(server.service.calls))
    with pytest.raises(openai.ConflictError, match=f"being read by {batch.id}"):
        client.files.delete(batch.input_file_id)
    assert client.batches.cancel(batch.id).status == "cancelling"
    slow.open()
    batch = ended(client, batch)
    assert batch.status == "cancelled"
    good, missing = results(client, batch.output_file_id), results(client, batch.error_file_id)
    assert {*good, *missing} == {f"r{i}" for i in range(30)}
    assert len(good) + len(missing) == 30
    assert all(item["error"]["code"] == "batch_cancelled" for item in missing.values())
    assert not server.service.calls
    rows = {row.request_id for row in page(server.service.accounts.database)}
    billed = {id for id, item in (good | missing).items() if item["id"].removeprefix("batch_req_") in rows}
    assert billed == {*good}
    with pytest.raises(openai.ConflictError, match="is completed"):
        client.batches.cancel(ended(client, create(client, [line(0)])).id)
    client.files.delete(batch.input_file_id)


def test_a_batch_expires(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client = server.openai()
    slow = Slow(server, monkeypatch)
    slow.close()
    batch = create(client, [line(i) for i in range(6)])
    until(lambda: bool(server.service.calls))
    running = server.app.state.runner._runs[batch.id]
    running._expire()
    slow.open()
    batch = ended(client, batch)
    assert batch.status == "expired"
    errors = results(client, batch.error_file_id)
    assert {item["error"]["code"] for item in errors.values()} == {"batch_expired"}
    assert len(errors) + len(results(client, batch.output_file_id)) == 6


def test_lines_wait_for_the_limits_of_their_key(
    start: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    accounts = open_accounts(tmp_path_factory.mktemp("ledger"), requires_keys=True)
    server = start(ServerConfig(port=0), accounts)
    key, secret = accounts.keys.create("slow", "acme", limits=Limits(concurrent_requests=1, models=("tiny",)))
    client = server.openai(secret)
    batch = ended(client, create(client, [line(i) for i in range(2)] + [line(2, model="secret")]))
    assert {*results(client, batch.output_file_id)} == {"r0", "r1"}
    errors = results(client, batch.error_file_id)
    assert errors["r2"]["response"]["status_code"] == 403
    rows = [*page(accounts.database)]
    assert {(row.key_id, row.tenant) for row in rows} == {(key.id, "acme")}
    other = server.openai(accounts.keys.create("other", "umbrella")[1])
    for ask in (
        lambda: other.batches.retrieve(batch.id),
        lambda: other.batches.cancel(batch.id),
        lambda: other.files.content(batch.output_file_id or ""),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()
    assert other.batches.list().data == []


def test_lines_of_a_revoked_key_are_refused(
    start: Start, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = open_accounts(tmp_path_factory.mktemp("ledger"), requires_keys=True)
    server = start(ServerConfig(port=0, batch_requests=1), accounts)
    key, secret = accounts.keys.create("short", "acme")
    client = server.openai(secret)
    same = server.openai(accounts.keys.create("same tenant", "acme")[1])
    slow = Slow(server, monkeypatch)
    slow.close()
    batch = create(client, [line(i) for i in range(3)])
    until(lambda: bool(server.service.calls))
    accounts.keys.revoke(key.id)
    slow.open()
    batch = ended(same, batch)
    errors = results(same, batch.error_file_id)
    assert [item["response"]["status_code"] for item in errors.values()] == [401, 401]


class Process:
    """`puna serve` over the tiny model, that can be killed and started again on the same data."""

    def __init__(self, folder: Path, model: Path) -> None:
        self._folder, self._model = folder, model
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> openai.OpenAI:
        script = Path(__file__).parent / "fast_serve.py"
        self._process = subprocess.Popen(
            [sys.executable, str(script), "serve", f"tiny={self._model}", "--port", "0",
             "--grace", "0", "--threads", "1"],
            env={**os.environ, "PUNA_HOME": str(self._folder)},
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert self._process.stderr is not None
        for said in self._process.stderr:
            if found := re.search(r"http://[\d.:]+/v1", said):
                return openai.OpenAI(base_url=found[0], api_key="none", max_retries=0)
        raise AssertionError("the server did not start")

    def stop(self, how: int) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        self._process.send_signal(how)
        self._process.stderr.read()
        self._process.wait(30)
        self._process.stderr.close()
        self._process = None

    def close(self) -> None:
        if self._process is not None:
            self.stop(signal.SIGKILL)


@pytest.fixture
def process(tmp_path: Path, tiny_path: Path) -> Iterator[Process]:
    found = Process(tmp_path, tiny_path)
    yield found
    found.close()


def test_a_batch_survives_its_server(process: Process, tmp_path: Path) -> None:
    """Killed once, told to stop once; each line is answered and billed once, with the same words."""
    n_lines = 150
    client = process.start()
    batch = create(client, [line(i, temperature=1, max_tokens=40) for i in range(n_lines)])
    for how, part in ((signal.SIGKILL, 0.2), (signal.SIGTERM, 0.5)):

        def is_so_far(part: float = part, client: openai.OpenAI = client) -> bool:
            counts = client.batches.retrieve(batch.id).request_counts
            return counts is not None and counts.completed >= part * n_lines

        until(is_so_far)
        before = client.batches.retrieve(batch.id)
        process.stop(how)
        assert before.status == "in_progress"
        client = process.start()
    batch = ended(client, batch)
    assert batch.status == "completed"
    good = results(client, batch.output_file_id)
    assert [*good] == [f"r{i}" for i in range(n_lines)]
    process.stop(signal.SIGTERM)
    database = open_database(f"sqlite:///{tmp_path}/server.db")
    rows = {row.request_id: row for row in page(database, limit=1000)}
    database.close()
    assert {item["response"]["request_id"] for item in good.values()} == {*rows}
    for item in good.values():
        usage, row = item["response"]["body"]["usage"], rows[item["response"]["request_id"]]
        assert (row.prompt_tokens, row.output_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
        assert row.status == "ok"


def test_another_server_takes_over(start: Start, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("shared")
    config = ServerConfig(port=0, files_folder=str(folder / "files"))
    first, second = (start(config, open_accounts(folder, journal=f"journal{i}")) for i in range(2))
    client = first.openai()
    file = client.files.create(file=("b", json.dumps(line(0)).encode()), purpose="batch")
    past = datetime.now(UTC) - timedelta(seconds=1)
    with first.service.accounts.database.write() as connection:
        row = {"id": "batch_dead", "key_id": "", "tenant": "", "endpoint": CHAT, "input_file_id": file.id}
        row |= {"status": "validating", "request": {"completion_window": "24h", "metadata": None}}
        row |= {"models": [], "created_at": past, "expires_at": past + timedelta(hours=1)}
        connection.execute(batches.insert(), {**row, "owner": "somebody dead", "owned_until": past})
        connection.execute(update(batches).where(batches.c.id == "batch_dead").values(n_total=0))
    batch = ended(second.openai(), Batch.model_construct(id="batch_dead"))
    assert batch.status == "completed"
    assert [*results(second.openai(), batch.output_file_id)] == ["r0"]
