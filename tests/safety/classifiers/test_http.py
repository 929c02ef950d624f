"""A moderation service elsewhere: scripted answers over a real socket."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from openai.types import ModerationCreateResponse

from puna.core import BadValue, WorkFailed
from puna.safety.classifiers import make
from puna.safety.classifiers.http import Http
from puna.safety.taxonomy import OPENAI
from puna.safety.verdict import Verdict

Reply = tuple[int, dict[str, str], bytes]


class Service:
    """What was asked, and what to answer."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.reply: Callable[[Any], Reply] = lambda body: answer([result() for _ in body["input"]])
        self.port = 0

    def url(self, path: str = "/v1/moderations") -> str:
        return f"http://127.0.0.1:{self.port}{path}"


def result(flagged: bool = False, **scores: float) -> dict[str, Any]:
    categories = {name: value >= 0.5 for name, value in scores.items()}
    return {"flagged": flagged, "categories": categories, "category_scores": scores}


def answer(results: list[Any], status: int = 200) -> Reply:
    body = {"id": "modr-1", "model": "m", "results": results}
    return status, {"content-type": "application/json"}, json.dumps(body).encode()


def openai_result(scores: dict[str, float]) -> dict[str, Any]:
    """With all the fields of OpenAI's client."""
    every = {name: scores.get(name, 0.01) for name in OPENAI}
    return {
        "flagged": max(every.values()) >= 0.5,
        "categories": {name: score >= 0.5 for name, score in every.items()},
        "category_scores": every,
        "category_applied_input_types": {name: ["text"] for name in every},
    }


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            made.asked.append((self.path, dict(self.headers.items()), body))
            status, headers, raw = made.reply(body)
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(raw))}.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(raw)
            except OSError:
                self.close_connection = True  # who asked has gone

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def judged(classifier: Any, *texts: str) -> list[Verdict]:
    return list(asyncio.run(classifier.judge([[("user", "before"), ("assistant", t)] for t in texts])))


def test_the_last_turns_are_sent_with_the_key_and_results_read(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUNA_MODERATION_KEY", "sk-test")
    bad, good = (
        openai_result({"harassment/threatening": 0.9, "self-harm": 0.7}),
        openai_result({"sexual": 0.2}),
    )
    said = ModerationCreateResponse.model_validate(
        {"id": "modr-1", "model": "omni", "results": [good, bad, good]}
    )
    raw = said.model_dump_json(by_alias=True).encode()
    service.reply = lambda body: (200, {"content-type": "application/json"}, raw)
    classifier = make(f"http:{service.url()}#omni")
    assert classifier.name == "http:127.0.0.1#omni"
    assert judged(classifier, "good", "bad", "half \ud800") == [
        Verdict(False, 0.2),
        Verdict(True, 0.9, ("harassment-threatening", "self-harm")),
        Verdict(False, 0.2),
    ]
    [(path, headers, body)] = service.asked
    assert path == "/v1/moderations"
    assert headers["Authorization"] == "Bearer sk-test"
    assert body == {"model": "omni", "input": ["good", "bad", "half ?"]}


def test_many_texts_are_several_requests(service: Service) -> None:
    service.reply = lambda body: answer([result(text.endswith("7")) for text in body["input"]])
    found = judged(Http(service.url(), "m"), *(f"text {i}" for i in range(70)))
    assert [i for i, one in enumerate(found) if one.is_unsafe] == [7, 17, 27, 37, 47, 57, 67]
    assert [len(body["input"]) for _, _, body in service.asked] == [32, 32, 6]
    assert "Authorization" not in service.asked[0][1]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((500, {}, b"oops"), "answered 500: 'oops'"),
        ((401, {}, b'{"error": "no"}'), "answered 401"),
        ((302, {"location": "http://127.0.0.1:1/v1/moderations"}, b""), "answered 302"),  # not followed
        ((200, {}, b"<html>"), "must answer as OpenAI's moderations"),
        ((200, {}, b'{"results": {}}'), "must give 1 results, gave 0"),
        ((200, {}, b'{"results": [{"flagged": "no", "categories": {}}]}'), "must answer as"),
        ((200, {}, b'{"results": [{"flagged": false}]}'), "must answer as"),
        ((200, {}, b'{"results": [{"flagged": false, "categories": {"a": 0.5}}]}'), "must answer as"),
        (
            (200, {}, b'{"results": [{"flagged": false, "categories": {}, "category_scores": {"a": 7}}]}'),
            "must",
        ),
        ((200, {}, b'{"results": [null]}'), "must answer as"),
        (answer([result(), result()]), "must give 1 results, gave 2"),
        ((200, {}, b" " * (5 << 20)), "answered more than 4 MB"),
        ((200, {"content-encoding": "gzip"}, b"no gzip"), "could not be asked: DecodingError"),
    ],
)
def test_whatever_goes_wrong_is_an_error_and_never_safe(service: Service, reply: Reply, said: str) -> None:
    service.reply = lambda body: reply
    with pytest.raises(WorkFailed, match=said):
        judged(Http(service.url(), "m"), "x")
    assert len(service.asked) == 1  # no retries


def test_a_service_that_is_slow_or_away_is_an_error(service: Service) -> None:
    service.reply = lambda body: (time.sleep(0.5), answer([result()]))[1]
    with pytest.raises(WorkFailed, match=r"did not answer within 0\.1 s|could not be asked: ReadTimeout"):
        judged(Http(service.url(), "m", seconds=0.1), "x")
    with pytest.raises(WorkFailed, match="could not be asked: ConnectError"):
        judged(Http("http://127.0.0.1:1/v1/moderations", "m"), "x")


def test_proxies_and_logins_of_the_environment_are_not_used(
    service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert judged(Http(service.url(), "m"), "x") == [Verdict(False, 0.0)]
    assert "Authorization" not in service.asked[0][1]


@pytest.mark.parametrize(
    ("url", "key", "said"),
    [
        ("ftp://host/v1/moderations", None, "must be http"),
        ("https://host/v1/chat", None, "must be http"),
        ("https://host:x/moderations", None, "must be http"),
        ("https://[::1/moderations", None, "must be http"),
        ("https://ho st/moderations", None, "must be http"),
        ("https://me:pass@host/moderations", None, "must have no password"),
        ("https://host/moderations", "k\n", "ASCII"),
        ("http://host/moderations", "key", "must not go to host unencrypted"),
    ],
)
def test_addresses_and_keys_are_checked_first(url: str, key: str | None, said: str) -> None:
    with pytest.raises(BadValue, match=said):
        Http(url, "m", key)
