"""Requests made from OpenAI's own document, and answers checked by it, against a real server.

    python -m server.conformance.openapi --cases 2000

schemathesis makes them: three of four as the document has them (cut to what is here: document.py), the others
wrong in some place. No answer is 5xx, what is wrong is refused, every answer is as the document says, events
of streams and errors too, and what is right is answered unless REFUSED says why not.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import warnings
from base64 import b64encode
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
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance
from server.conformance import document
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

# what a request that the document allows may be refused for: a part of the message, and why
REFUSED = {
    "there is no ": "nothing has that id",
    "model is missing": "a server may have several models",
    "input is missing": "there is nothing to answer",
    "must have at least one token": "an empty prompt is no question",
    "must have content or tool_calls": "as the document says in words",
    "stream_options need stream": "as the document says in words",
    "top_logprobs needs": "as the document says in words",
    "continues a previous one or belongs to": "as the document says in words",
    "dimensions must be": "as the document says in words, of models whose embeddings cannot be cut",
    "must have one of (image_url|url) and": "an image is in one place",
    "tool_choice needs tools|allowed_tools must be some": "a choice among no tools, or of others",
    "(call_id|id|name): String should have at least 1 character": "calls and items are told apart by them",
    "include\\[\\d+\\]: Input should be": "of tools that only OpenAI has",
    "service_tier: Input should be": "OpenAI sells more",
    "modalities\\[\\d+\\]: Input should be 'text'": "models of the family do not speak",
    "truncation must be 'disabled'": "nothing is cut unasked",
    "to fill in code the vocabulary must have": "of most models; Code Llama has `suffix`",
    "a stored response comes at once": "it is there already",
    "a background response is stored": "it is asked for by its id",
    "can be cancelled|was not made in the background": "what has ended, or was never in the background",
    "the body (is missing|must be)|the body: Input": "the document forgets to say that it is needed",
}
_OBJECT = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
_NAME = {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}
_TOOL = {"enum": ["f", "g"]}
_MODEL = {"enum": ["tiny"]}


@dataclass
class Report:
    n_cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    n_right: int = 0  # cases as the document has them
    n_answered: int = 0  # of those
    n_events: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # of those, by the entry of REFUSED
    wrong: dict[str, str] = field(default_factory=dict)  # what is wrong with an answer: the request

    def lines(self) -> Iterator[str]:
        statuses = ", ".join(f"{n} of {status}" for status, n in sorted(self.statuses.items()))
        yield f"{self.n_cases:,} requests: {statuses}; {self.n_events:,} events of streams"
        yield f"{self.n_answered:,} of {self.n_right:,} that the document allows were answered; refused were"
        for said, n in self.refused.most_common():
            yield f"  {n:5}  {said}: {REFUSED[said]}"
        yield f"{len(self.wrong):,} kinds of deviations"
        for said, request in self.wrong.items():
            yield f"  {said}\n      {request}"


class Conformance:
    """Asks one server."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/v1"
        self._http = httpx.Client(base_url=self._url, timeout=60)
        self._session = requests.Session()
        self._random = random.Random(0)
        self.report = Report()
        whole = document.load()
        self._plain = document.cut(whole, {})
        cut = document.cut(whole, self._narrowed())
        self._components = cut["components"]
        self._schema = schemathesis.openapi.from_dict(cut)
        self._validators: dict[str, Any] = {}

    def close(self) -> None:
        self._http.close()
        self._session.close()

    def run(self, n_cases: int) -> None:
        operations = [found.ok() for found in self._schema.get_all_operations()]
        total = sum(WEIGHTS.get(operation.path, 1) for operation in operations)
        for number, operation in enumerate(operations):
            n = max(4, round(n_cases * WEIGHTS.get(operation.path, 1) / total))
            n_wrong = n // 4 if operation.body else 0
            self._ask(operation, schemathesis.GenerationMode.POSITIVE, n - n_wrong, number)
            if n_wrong:
                self._ask(operation, schemathesis.GenerationMode.NEGATIVE, n_wrong, number)

    def _ask(self, operation: Any, mode: Any, n: int, number: int) -> None:
        @seed(number)
        @settings(
            max_examples=n, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            self._check(case, is_right=mode is schemathesis.GenerationMode.POSITIVE)

        ask()

    def _check(self, case: Any, *, is_right: bool) -> None:
        self._fill(case)
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
        elif answer.status_code < 400 and self._is_wrong(case, answer):
            self._wrong(case, f"a wrong request was answered: {case.meta.phase.data.description}")

    def _is_wrong(self, case: Any, answer: Any) -> bool:
        """Whether the document itself forbids a request, not only what it was narrowed to here; fields that
        change nothing are not looked at, and named in a header.
        """
        if not isinstance(case.body, dict):
            return False  # nothing was sent
        ignored = ", ".join(answer.headers.get("x-puna-ignored", ())).split(", ")
        body = {name: value for name, value in case.body.items() if name not in ignored}
        content = self._plain["paths"][case.operation.path][case.operation.method]["requestBody"]["content"]
        [kind] = content.values()
        root = {**kind["schema"], "components": self._plain["components"]}
        return not jsonschema.Draft202012Validator(root).is_valid(body)

    def _was_right(self, case: Any, answer: Any) -> None:
        report = self.report
        report.n_right += 1
        if answer.status_code < 400:
            report.n_answered += 1
            return
        message = answer.json()["error"]["message"]
        reason = next((said for said in REFUSED if re.search(said, message)), None)
        if reason is None:
            self._wrong(case, f"{answer.status_code}: {message} ({answer.json()['error']['param']})")
        else:
            report.refused[reason] += 1

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

    def _fill(self, case: Any) -> None:
        """Most requests ask for what exists, and say what they ask for."""
        case.body = _whole(case.body)
        if self._random.random() < 0.2:
            return
        for name in case.path_parameters or {}:
            case.path_parameters[name] = self._existing(name, case)
        if case.operation.path.startswith("/responses") and isinstance(case.body, dict):
            case.body.setdefault("model", "tiny")
            case.body.setdefault("input", "Hi")
        if case.operation.path in EVENTS and isinstance(case.body, dict) and self._random.random() < 0.3:
            case.body.setdefault("stream", True)

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

    def _narrowed(self) -> dict[str, Any]:
        """What no generator guesses, and what would take long: many answers, and long ones."""
        picture = self._post("/files", files={"file": ("a.png", png())}, data={"purpose": "vision"})
        response = self._post("/responses", json={"model": "tiny", "input": "Hi"})
        conversation = self._new_conversation()
        image = {"enum": ["data:image/png;base64," + b64encode(png()).decode()]}
        short, counts = _maybe(_whole_number(1, 16)), _maybe(_whole_number(1, 2))
        texts = {**_list(_text(1)), "maxItems": 4}
        ids = {**_list(_whole_number(0, 255)), "maxItems": 20}
        prompts = {"anyOf": [_text(), texts, ids, {**_list(ids), "maxItems": 2}]}
        biases = {"type": "object", "propertyNames": {"pattern": "^[0-9]{1,2}$"},
                  "additionalProperties": _whole_number(-100, 100)}  # fmt: skip
        held = _object(name=_NAME, schema={"enum": [_OBJECT]}, strict={"type": "boolean"})
        endpoints = [f"/v1/{name}" for name in ("chat/completions", "completions", "responses", "embeddings")]
        return {
            "limit": _whole_number(1, 100), "purpose": {"enum": ["batch", "vision", "user_data"]},
            "model": _MODEL, "ModelIdsShared": _MODEL, "ModelIdsResponses": _MODEL,
            "input_file_id": {"enum": [self._new_file()]}, "endpoint": {"enum": endpoints},
            "n": counts, "max_tokens": short, "max_completion_tokens": short, "max_output_tokens": short,
            "logit_bias": biases, "prompt": prompts, "CreateEmbeddingRequest.input": prompts,
            "StopConfiguration": {"anyOf": [_text(1), texts, {"type": "null"}]},
            "Metadata": {
                "type": "object", "propertyNames": _text(0, 64), "additionalProperties": _text(0, 512),
                "maxProperties": 16,
            },
            "ChatCompletionRequestAssistantMessage.content": _text(),
            "FunctionParameters": {"enum": [_OBJECT]}, "FunctionTool.parameters": {"enum": [_OBJECT, None]},
            "FunctionObject.name": _TOOL, "FunctionTool.name": _TOOL, "ToolChoiceFunction.name": _TOOL,
            "ChatCompletionNamedToolChoice.function": _object(name=_TOOL),
            "ChatCompletionAllowedTools.tools": _list(
                _object(type={"enum": ["function"]}, function=_object(name=_TOOL))
            ),
            "ToolChoiceAllowed.tools": _list(_object(type={"enum": ["function"]}, name=_TOOL)),
            "ResponseFormatJsonSchema.json_schema": held,
            "ResponseFormatJsonSchemaSchema": {"enum": [_OBJECT]}, "TextResponseFormatJsonSchema.name": _NAME,
            "ChatCompletionRequestMessageContentPartImage.image_url": _object(url=image),
            "InputImageContent.image_url": image, "InputImageContent.file_id": {"enum": [None]},
            "InputImageContentParamAutoParam.image_url": {"enum": [None]},
            "InputImageContentParamAutoParam.file_id": {"enum": [picture]},
            "previous_response_id": {"enum": [response, None]},
            "ConversationParam": {"enum": [conversation, {"id": conversation}]},
        }  # fmt: skip


def _text(least: int = 0, most: int = 10_000) -> dict[str, Any]:
    return {"type": "string", "minLength": least, "maxLength": most}


def _whole_number(least: int, most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most}


def _maybe(schema: Any) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


def _object(**properties: Any) -> dict[str, Any]:
    """All of them needed, no others."""
    needed = [*properties]
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


def _whole(value: Any) -> Any:
    """16.0 is an integer to JSON Schema, and no number of tokens here."""
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@contextmanager
def conformance() -> Iterator[Conformance]:
    """A server whose model sees pictures and ends its answers soon."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_tiny_llm(folder / "m.gguf", template=TEMPLATE, control=TOKENS["llama4"], context=4096)
        with LLM(path, threads=1, batch=64) as llm:
            let_see(llm, LLAMA4)
            end, quote = llm.tokenizer.id("<|im_end|>"), llm.tokenizer.encode('"', bos=False)[0]
            likely = {end: 8.0, quote: 8.0}
            llm.default_params = SamplingParams(temperature=1.5, seed=1, logit_bias=likely, min_tokens=3)
            with running(llm, "tiny", folder) as url:
                made = Conformance(url)
                yield made
                made.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Answers to requests made from OpenAI's document.")
    parser.add_argument("--cases", type=int, default=2000)
    n_cases = parser.parse_args().cases
    warnings.simplefilter("ignore")
    with conformance() as made:
        made.run(n_cases)
        print("\n".join(made.report.lines()))
        return 1 if made.report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
