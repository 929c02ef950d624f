"""The log: a line for each call, equal to the ledger's row, without keys and without what was said."""

from __future__ import annotations

import io
import json
import logging
import threading
from datetime import date
from typing import Any

import httpx
import pytest
from server.conftest import Running, Start, open_accounts

from puna.core import BadValue
from puna.llm import LLM
from puna.server.config import ServerConfig
from puna.server.logs import TextFormatter, Writer, event, logging_to
from puna.server.tenants.prices import Price, PriceList, dollars
from puna.server.tenants.queries import page

SECRET = "xylophone"
CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": SECRET}],
    "max_tokens": 5,
    "temperature": 0,
    "ignore_eos": True,
}
PRICES = PriceList((Price("*", 2_000_000_000, 2_000_000_000, 8_000_000_000, date.min),))


@pytest.fixture(scope="module")
def server(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Running:
    accounts = open_accounts(tmp_path_factory.mktemp("ledger"), PRICES, requires_keys=True)
    return start(ServerConfig(port=0, log_level="debug"), accounts)


class Client:
    """Somebody with a key."""

    def __init__(self, server: Running, tenant: str = "acme") -> None:
        self.key, self.secret = server.service.accounts.keys.create("test", tenant)
        self._url = server.url

    def ask(self, **changes: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.secret}"}
        return httpx.post(
            f"{self._url}/v1/chat/completions", json={**CHAT, **changes}, headers=headers, timeout=60
        )


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_each_call_is_a_line(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client, out = Client(server), io.StringIO()
    # a server without an access log in the same process, as tests have them, turns off that of all
    monkeypatch.setattr(logging.getLogger("uvicorn.access"), "propagate", True)

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"cannot read {SECRET}")

    with logging_to(out, form="json", level="debug"):
        assert client.ask().status_code == 200
        assert client.ask(stream=True).status_code == 200
        assert client.ask(stop=7, temperature="warm").status_code == 400
        assert client.ask(**{SECRET: 1}).status_code == 400
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        with monkeypatch.context() as patch:
            patch.setattr(LLM, "chat_request", broken)
            assert client.ask().status_code == 500
    assert SECRET not in out.getvalue()
    assert client.secret not in out.getvalue()
    lines = lines_of(out)
    calls = [line for line in lines if line["event"] == "call"]
    rows = {row.request_id: row for row in page(server.service.accounts.database)}
    assert len(calls) == 2
    for line in calls:
        row = rows[line["request_id"]]
        assert line["cost_usd"] == dollars(row.cost_nano) != "0.000000000"
        assert line["queue_s"] == pytest.approx(row.queue_s, abs=1e-6)
        for name in ("key_id", "tenant", "model", "endpoint", "status", "prompt_tokens", "output_tokens"):
            assert line[name] == getattr(row, name)
    refused = [line for line in lines if line["event"] == "refused"]
    assert [line["status"] for line in refused] == [400, 400, 401, 500]
    assert [line.get("key_id") for line in refused] == [None, None, None, client.key.id]
    failed = [line for line in lines if "exception" in line]
    assert failed
    assert all("RuntimeError" in line["exception"] and "test_logs.py" in line["exception"] for line in failed)
    access = [(line["method"], line["path"], line["status"]) for line in lines if line["event"] == "access"]
    assert ("GET", "/v1/models", 401) in access


def test_prompts_are_logged_where_they_are_asked_for(start: Start) -> None:
    server, out = start(ServerConfig(port=0, log_prompts=True)), io.StringIO()
    with logging_to(out, form="json", shows_text=True):
        answer = server.post("/v1/chat/completions", CHAT).json()
    line = lines_of(out)[0]
    assert SECRET in line["prompts"][0]
    assert line["answers"] == [answer["choices"][0]["message"]["content"]]


def test_nothing_that_is_logged_makes_lines_of_its_own() -> None:
    out = io.StringIO()
    with logging_to(out):
        event("refused", path="/a\n2026-01-01 error forged", tenant='a "b"', empty="")
        logging.getLogger("puna.server").warning("two\nlines")
        event("debugging", logging.DEBUG)
    assert [line[25:] for line in out.getvalue().splitlines()] == [
        'info    refused path="/a\\n2026-01-01 error forged" tenant="a \\"b\\"" empty=""',
        "warning two\\nlines",
    ]


class Stuck(io.StringIO):
    """A stream whose reader has stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()

    def write(self, text: str) -> int:
        self.goes_on.wait(30)
        return super().write(text)


def test_a_log_that_nobody_reads_holds_up_nothing() -> None:
    out = Stuck()
    writer = Writer(out, most=3)
    writer.setFormatter(TextFormatter())
    log = logging.getLogger("puna.stuck")
    log.addHandler(writer)
    try:
        for number in range(10):
            log.error("line %d", number)
    finally:
        log.removeHandler(writer)
    out.goes_on.set()
    writer.close()
    *lines, last = out.getvalue().splitlines()
    assert len(lines) in (3, 4)  # the writer may have taken one before the others came
    numbers = [int(line.rpartition(" ")[2]) for line in lines]
    assert numbers == sorted(set(numbers))
    assert f"{10 - len(lines)} lines of the log were lost" in last


def test_settings_of_the_log() -> None:
    with pytest.raises(BadValue, match="log_format must be one of text, json, got 'yaml'"):
        ServerConfig(log_format="yaml")
    with pytest.raises(BadValue, match=r"log_level must be one of .* did you mean 'debug'"):
        ServerConfig(log_level="debgu")
