"""Requests made from OpenAI's own document, and answers checked by it, against a real server.

    python -m server.conformance.openapi --cases 2000

schemathesis makes them: three of four as the document has them (cut to what is here: document.py), the others
wrong in some place. No answer is 5xx, what is wrong is refused, every answer is as the document says, events
of streams and errors too, and what is right is answered unless refusals.py says why not.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from llm.tiny_llm import write_tiny_llm
from llm.tiny_vision import LLAMA4, TEMPLATE, TOKENS, let_see, png
from schemathesis.checks import not_a_server_error
from schemathesis.core import NotSet
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance
from server.conformance import document
from server.conformance.deviations import UNREAD_PARAMETERS
from server.conformance.narrowed import narrowed
from server.conformance.refusals import Asked, Refusal, refusal
from server.structured.served import running

from puna import LLM, SamplingParams

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]
BYTES = "/files/{file_id}/content"  # which the document calls JSON
EVENTS = {
    "/chat/completions": "CreateChatCompletionStreamResponse",
    "/completions": "CompletionChunk",
    "/responses": "ResponseStreamEvent",
}
# how many of the cases are of an operation; 1 for all others
WEIGHTS = {
    "/chat/completions": 14,
    "/completions": 7,
    "/responses": 14,
    "/embeddings": 3,
    "/conversations": 3,
}


@dataclass
class Report:
    n_cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    n_right: int = 0  # cases as the document has them
    n_answered: int = 0  # of those
    n_events: int = 0
    refused: Counter[Refusal] = field(default_factory=Counter)  # of those, by what for
    n_forbidden: int = 0  # cases that the document forbids, and were refused
    wrong: dict[str, str] = field(default_factory=dict)  # what is wrong with an answer: the request

    def lines(self) -> Iterator[str]:
        statuses = ", ".join(f"{n} of {status}" for status, n in sorted(self.statuses.items()))
        yield f"{self.n_cases:,} requests: {statuses}; {self.n_events:,} events of streams"
        yield f"{self.n_forbidden:,} that were made wrong were refused"
        yield f"{self.n_answered:,} of {self.n_right:,} that the document allows were answered; refused were"
        for known, n in self.refused.most_common():
            yield f"  {n:5}  {known.status} {known.shown}: {known.reason}"
        yield f"{len(self.wrong):,} deviations that are in no table"
        for said, request in self.wrong.items():
            yield f"  {said}\n      {request}"


class Conformance:
    """Asks one server."""

    def __init__(self, url: str, number: int) -> None:
        self._url = f"{url}/v1"
        self._http = httpx.Client(base_url=self._url, timeout=60)
        self._session = requests.Session()
        self._number = number
        self._random = random.Random(number)
        self._ids: set[str] = set()  # of what has been made
        self.report = Report()
        whole = document.load()
        self._plain = document.cut(whole, {}, is_lenient=True)
        picture = self._post("/files", files={"file": ("a.png", png())}, data={"purpose": "vision"})
        ids = picture, self._new_file(), self._new_response(), self._new_conversation()
        cut = document.cut(whole, narrowed(*ids))
        self._components = cut["components"]
        self._schema = schemathesis.openapi.from_dict(cut)
        # by default it hangs up after so many parts of a stream
        self._schema.config.max_stream_events = 1_000_000
        self._validators: dict[str, Any] = {}

    def close(self) -> None:
        self._http.close()
        self._session.close()

    def run(self, n_cases: int) -> None:
        operations = [found.ok() for found in self._schema.get_all_operations()]
        total = sum(WEIGHTS.get(operation.path, 1) for operation in operations)
        for number, operation in enumerate(operations):
            n = max(4, round(n_cases * WEIGHTS.get(operation.path, 1) / total))
            n_wrong = n // 4 if operation.body or operation.query else 0
            self._ask(operation, schemathesis.GenerationMode.POSITIVE, n - n_wrong, number)
            if n_wrong:
                self._ask(operation, schemathesis.GenerationMode.NEGATIVE, n_wrong, number)
        chat = next(operation for operation in operations if operation.path == "/chat/completions")
        while (n := n_cases - self.report.n_cases) > 0:  # some operations have few different cases
            number += 1
            self._ask(chat, schemathesis.GenerationMode.POSITIVE, n, number)

    def _ask(self, operation: Any, mode: Any, n: int, number: int) -> None:
        @seed(1000 * self._number + number)
        @settings(
            max_examples=n, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            self._check(case, is_right=mode is schemathesis.GenerationMode.POSITIVE)

        ask()

    def _check(self, case: Any, *, is_right: bool) -> None:
        self._fill(case, is_right=is_right)
        answer = case.call(base_url=self._url, session=self._session, timeout=60)
        report = self.report
        report.n_cases += 1
        report.statuses[answer.status_code] += 1
        kind = answer.headers.get("content-type", [""])[0]
        try:
            if answer.status_code >= 400:
                self._validate("ErrorResponse", answer.json())
            elif kind.startswith("text/event-stream"):
                self._check_events(case.operation.path, answer.text)
            elif case.operation.path != BYTES:
                case.validate_response(answer, checks=CHECKS)
        except (AssertionError, jsonschema.ValidationError, schemathesis.errors.SchemathesisError) as error:
            self._wrong(case, str(error))
        except BaseExceptionGroup as group:
            self._wrong(case, "; ".join(str(error) for error in group.exceptions))
        if answer.status_code >= 500:
            self._wrong(case, f"{answer.status_code}: {answer.text}")
        elif is_right:
            self._was_right(case, answer)
        elif answer.status_code >= 400:
            report.n_forbidden += 1
        elif self._is_wrong(case, answer):
            self._wrong(case, f"a wrong request was answered: {case.meta.phase.data.description}")

    def _is_wrong(self, case: Any, answer: Any) -> bool:
        """Whether the document itself forbids a request, not only what it was narrowed to here; fields that
        change nothing are not looked at, and named in a header.
        """
        operation = self._plain["paths"][case.operation.path][case.operation.method]
        for asked in operation["parameters"]:
            is_read = asked["name"] not in UNREAD_PARAMETERS[0]
            if asked["in"] == "query" and is_read and asked["name"] in (case.query or {}):
                found = _read(case.query[asked["name"]])
                if not any(self._is_valid(asked["schema"], value) for value in found):
                    return True
        if isinstance(case.body, NotSet):
            return False
        ignored = ", ".join(answer.headers.get("x-puna-ignored", ())).split(", ")
        body = _without(case.body, ignored)
        [kind] = operation["requestBody"]["content"].values()
        return not self._is_valid(kind["schema"], body)

    def _is_valid(self, schema: Any, value: Any) -> bool:
        root = {**schema, "components": self._plain["components"]}
        return bool(jsonschema.Draft202012Validator(root).is_valid(value))

    def _was_right(self, case: Any, answer: Any) -> None:
        report = self.report
        report.n_right += 1
        if answer.status_code < 400:
            report.n_answered += 1
            return
        message = answer.json()["error"]["message"]
        body = None if isinstance(case.body, NotSet) else case.body
        asked = Asked(body, case.query or {}, frozenset(self._ids))
        known = refusal(answer.status_code, message, asked)
        if known is None:
            self._wrong(case, f"{answer.status_code}: {message} ({answer.json()['error']['param']})")
        else:
            report.refused[known] += 1

    def _wrong(self, case: Any, said: str) -> None:
        title = f"{case.operation.label}: {said.strip()[:600]}"
        body = case.body if isinstance(case.body, dict) else None
        self.report.wrong.setdefault(
            title, json.dumps([case.path_parameters, case.query, body], default=str)[:600]
        )

    def _check_events(self, path: str, text: str) -> None:
        events = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
        assert events, "a stream without events"
        if path != "/responses":
            assert events.pop() == "[DONE]", f"a stream that ends with {text[-300:]!r}"
        for event in events:
            self._validate(EVENTS[path], json.loads(event))
            self.report.n_events += 1

    def _validate(self, name: str, value: Any) -> None:
        if name not in self._validators:
            root = {"$ref": f"#/components/schemas/{name}", "components": self._components}
            self._validators[name] = jsonschema.Draft202012Validator(root)
        self._validators[name].validate(value)

    def _fill(self, case: Any, *, is_right: bool) -> None:
        """Most requests ask for what exists, and say what they ask for."""
        case.body = _whole(case.body)
        if self._random.random() < 0.2:
            return
        for name in case.path_parameters or {}:
            case.path_parameters[name] = self._existing(name, case)
        if not isinstance(case.body, dict):
            return
        if case.operation.path.startswith("/responses"):
            case.body.setdefault("model", "tiny")
            case.body.setdefault("input", "Hi")
        if case.operation.path in EVENTS and self._random.random() < 0.3:
            case.body.setdefault("stream", True)
        if is_right:
            _complete(case.body)

    # what exists

    def _existing(self, name: str, case: Any) -> str:
        """The id of something new, of the kind that a parameter of a path names."""
        if name == "item_id":
            items = self._http.get(f"/conversations/{case.path_parameters['conversation_id']}/items")
            return items.json()["data"][0]["id"] if items.status_code == 200 else "msg_none"
        made = {
            "model": lambda: "tiny",
            "response_id": self._new_response,
            "conversation_id": self._new_conversation,
            "file_id": self._new_file,
            "batch_id": self._new_batch,
        }
        return made[name]()

    def _post(self, path: str, **more: Any) -> str:
        answer = self._http.post(path, **more)
        answer.raise_for_status()
        self._ids.add(answer.json()["id"])
        return str(answer.json()["id"])

    def _new_response(self) -> str:
        return self._post("/responses", json={"model": "tiny", "input": "Hi", "background": True})

    def _new_conversation(self) -> str:
        return self._post("/conversations", json={"items": [{"role": "user", "content": "Hi"}]})

    def _new_file(self) -> str:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
        line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
        return self._post("/files", files={"file": ("a.jsonl", json.dumps(line))}, data={"purpose": "batch"})

    def _new_batch(self) -> str:
        asked = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
        return self._post("/batches", json={"input_file_id": self._new_file(), **asked})


def _complete(body: dict[str, Any]) -> None:
    """What fields need of one another by the words of the document."""
    if body.get("stream_options") is not None:
        body["stream"] = True
    if body.get("top_logprobs") is not None and "messages" in body:
        body["logprobs"] = True
    for message in body.get("messages", ()):
        if message["role"] == "assistant" and not message.get("tool_calls"):
            message["content"] = message.get("content") or "Hi"


def _without(body: Any, names: list[str]) -> Any:
    """A body without some of its fields, or of those of objects in it: "text.verbosity"."""
    if not isinstance(body, dict):
        return body
    made = {}
    for name, value in body.items():
        if name not in names:
            start = f"{name}."
            made[name] = _without(
                value, [deep.removeprefix(start) for deep in names if deep.startswith(start)]
            )
    return made


def _read(given: Any) -> list[Any]:
    """What a parameter of a query may mean: text, and numbers and truth values written out."""
    if not isinstance(given, str):
        return [given]
    try:
        return [given, json.loads(given)]
    except ValueError:
        return [given]


def _whole(value: Any) -> Any:
    """16.0 is an integer to JSON Schema, and no number of tokens here."""
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@contextmanager
def conformance(number: int) -> Iterator[Conformance]:
    """A server whose model sees pictures and ends its answers soon; `number` is the seed of its cases."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_tiny_llm(folder / "m.gguf", template=TEMPLATE, control=TOKENS["llama4"], context=4096)
        with LLM(path, threads=1, batch=64) as llm:
            let_see(llm, LLAMA4)
            end, quote = llm.tokenizer.id("<|im_end|>"), llm.tokenizer.encode('"', bos=False)[0]
            likely = {end: 8.0, quote: 8.0}
            llm.default_params = SamplingParams(temperature=1.5, seed=1, logit_bias=likely, min_tokens=3)
            with running(llm, "tiny", folder) as url:
                made = Conformance(url, number)
                yield made
                made.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Answers to requests made from OpenAI's document.")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with conformance(options.seed) as made:
        made.run(options.cases)
        print("\n".join(made.report.lines()))
        return 1 if made.report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
