"""Ollama's own client against a server, with the Python API of the same model as the oracle."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import ollama
import pytest
from PIL import Image
from server.conftest import Running, Start, open_accounts

from puna.core import Cancelled, SamplingParams, UnknownModel
from puna.llm.library import StoreLibrary
from puna.server.config import ServerConfig
from puna.server.ollama.fields import is_let_go
from puna.server.structured import compiled

MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}]
GREEDY: dict[str, Any] = {"temperature": 0, "num_predict": 12}
SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 30}},
    "required": ["age"],
    "additionalProperties": False,
}


@pytest.fixture
def client(server: Running) -> Iterator[ollama.Client]:
    with ollama.Client(server.url) as made:
        yield made


def test_a_chat_is_answered_as_by_the_python_api(server: Running, client: ollama.Client) -> None:
    expected = server.llm.chat(MESSAGES, temperature=0, max_tokens=12)
    found = client.chat("tiny", MESSAGES, options=GREEDY)
    assert found.message.content == expected.text
    assert (found.done, found.done_reason) == (True, "length")
    assert (found.prompt_eval_count, found.eval_count) == (expected.n_prompt, 12)
    assert found.total_duration >= found.prompt_eval_duration + found.eval_duration > 0
    pieces = [*client.chat("tiny:latest", MESSAGES, options=GREEDY, stream=True)]
    assert "".join(piece.message.content for piece in pieces) == expected.text
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].eval_count == 12


def test_a_prompt_is_a_message(server: Running, client: ollama.Client) -> None:
    expected = server.llm.chat(MESSAGES, temperature=0, max_tokens=12)
    found = client.generate("tiny", "Name a colour.", system="Be brief.", options=GREEDY)
    assert found.response == expected.text
    pieces = [*client.generate("tiny", "Name a colour.", system="Be brief.", options=GREEDY, stream=True)]
    assert "".join(piece.response for piece in pieces) == expected.text
    assert pieces[-1].context == found.context
    assert found.context is not None
    assert len(found.context) == found.prompt_eval_count + found.eval_count


def test_context_goes_on_from_the_answer(server: Running, client: ollama.Client) -> None:
    """The ids are those of the whole conversation as messages, its cut answer ended."""
    first = client.generate("tiny", "One", options=GREEDY)
    assert first.context is not None
    context = [*first.context]
    second = client.generate("tiny", "Two", context=context, options=GREEDY)
    assert second.context is not None
    tokenizer = server.llm.tokenizer
    added = tokenizer.encode(
        "<|im_end|>\n<|im_start|>user\nTwo<|im_end|>\n<|im_start|>assistant\n", special=True
    )
    assert [*second.context][: second.prompt_eval_count] == context + added
    closed = client.generate("tiny", "Two", context=[*context, tokenizer.id("<|im_end|>")], options=GREEDY)
    assert closed.context == second.context


def test_raw_prompts_are_not_templated(server: Running, client: ollama.Client) -> None:
    text = "<|im_start|>user\nHi<|im_end|>\n"
    expected = server.llm.generate(text, special=True, temperature=0, max_tokens=12)
    found = client.generate("tiny", text, raw=True, options=GREEDY)
    assert (found.response, found.prompt_eval_count) == (expected.text, expected.n_prompt)
    assert found.context is None


@pytest.mark.parametrize(
    ("options", "params"),
    [
        ({"seed": 7, "temperature": 1.5, "top_k": 20},
         {"seed": 7, "temperature": 1.5, "top_k": 20, "top_p": 0.9}),
        ({"seed": 7, "temperature": 1, "min_p": 0.05, "top_p": 1.0},
         {"seed": 7, "temperature": 1, "min_p": 0.05, "top_p": 1.0}),
        ({"temperature": 0, "repeat_penalty": 1.8},
         {"temperature": 0, "repetition_penalty": 1.8, "penalty_window": 64}),
        ({"temperature": 0, "repeat_penalty": 1.8, "repeat_last_n": 3},
         {"temperature": 0, "repetition_penalty": 1.8, "penalty_window": 3}),
        ({"temperature": 0, "frequency_penalty": 1.5, "presence_penalty": 0.5, "repeat_last_n": -1},
         {"temperature": 0, "frequency_penalty": 1.5, "presence_penalty": 0.5, "penalty_window": 512}),
    ],
)  # fmt: skip
def test_options_mean_what_they_say(
    server: Running, client: ollama.Client, options: dict[str, Any], params: dict[str, Any]
) -> None:
    expected = server.llm.chat("Go on.", max_tokens=40, **params)
    found = client.chat(
        "tiny", [{"role": "user", "content": "Go on."}], options={**options, "num_predict": 40}
    )
    assert found.message.content == expected.text


def test_stop_strings_and_num_ctx_end_an_answer(server: Running, client: ollama.Client) -> None:
    whole = server.llm.chat("Go on.", temperature=0, max_tokens=40)
    stop = whole.text[10:13]
    found = client.generate("tiny", "Go on.", options={"temperature": 0, "stop": [stop]})
    assert found.response == whole.text[: whole.text.index(stop)]
    assert found.done_reason == "stop"
    room = whole.n_prompt + 9
    cut = client.generate("tiny", "Go on.", options={"temperature": 0, "num_ctx": room})
    assert (cut.eval_count, cut.done_reason) == (9, "length")


@pytest.mark.parametrize("seed", range(3))
def test_answers_are_held_to_json(client: ollama.Client, seed: int) -> None:
    options = {"seed": seed, "temperature": 1, "num_predict": 300}
    found = client.chat("tiny", MESSAGES, format=SCHEMA, options=options)
    jsonschema.validate(json.loads(found.message.content or ""), SCHEMA)
    pieces = client.generate("tiny", "JSON", format=SCHEMA, options=options, stream=True)
    jsonschema.validate(json.loads("".join(piece.response for piece in pieces)), SCHEMA)


def test_json_without_a_schema_is_an_object(server: Running) -> None:
    body = {
        "model": "tiny",
        "prompt": "{",
        "format": "json",
        "stream": False,
        "options": {"num_predict": 300},
    }
    for seed in range(8):  # a random model closes what it opens now and then
        body["options"] = {"num_predict": 300, "seed": seed, "temperature": 1}
        answer = server.post("/api/generate", body).json()
        assert answer["response"].lstrip().startswith("{")
        if answer["done_reason"] == "stop":
            assert isinstance(json.loads(answer["response"]), dict)


def weather(city: str) -> str:
    """The weather somewhere.

    Args:
      city: where
    """
    return city


def test_calls_of_tools_are_told_apart(server: Running, client: ollama.Client) -> None:
    """The answer is held to one text that is a call."""
    call = '{"name": "weather", "parameters": {"city": "Lima"}}'
    served = server.llm
    request = served.chat_request

    def held(messages: Any, params: SamplingParams, **more: Any) -> Any:
        made = request(messages, params, **more)
        made.grammar = compiled(served, "choice", [call]).start()
        return made

    served.chat_request = held  # type: ignore[method-assign]
    try:
        found = client.chat("tiny", MESSAGES, tools=[weather])
        pieces = [*client.chat("tiny", MESSAGES, tools=[weather], stream=True)]
    finally:
        del served.chat_request
    for message in (found.message, next(p.message for p in pieces if p.message.tool_calls)):
        assert message.tool_calls is not None
        (made,) = message.tool_calls
        assert (made.function.name, made.function.arguments) == ("weather", {"city": "Lima"})
    assert found.message.content == ""
    assert found.done_reason == "stop"
    results = [*MESSAGES, found.message, {"role": "tool", "content": "Rain", "tool_name": "weather"}]
    assert client.chat("tiny", results, tools=[weather], options=GREEDY).done


def test_log_probabilities(server: Running, client: ollama.Client) -> None:
    expected = server.llm.chat(MESSAGES, temperature=0, max_tokens=5, logprobs=2)
    assert expected.logprobs is not None
    found = client.chat("tiny", MESSAGES, options={**GREEDY, "num_predict": 5}, logprobs=True, top_logprobs=2)
    assert found.logprobs is not None
    assert [item.logprob for item in found.logprobs] == pytest.approx([p.logprob for p in expected.logprobs])
    assert [len(item.top_logprobs or ()) for item in found.logprobs] == [2] * 5


def test_models_are_listed_and_shown(server: Running, client: ollama.Client) -> None:
    (listed,) = client.list().models
    assert listed.model == "tiny"
    assert listed.size == server.llm.path.stat().st_size
    assert listed.details is not None
    assert (listed.details.format, listed.details.family) == ("gguf", "llama")
    (running,) = client.ps().models
    assert (running.model, running.context_length) == ("tiny", 512)
    shown = client.show("tiny")
    assert shown.template == server.llm.tokenizer.chat_template
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == 512
    assert shown.capabilities == ["completion", "tools"]
    assert listed.digest == hashlib.sha256(server.llm.path.read_bytes()).hexdigest()


def test_an_empty_prompt_asks_for_the_model(server: Running, client: ollama.Client) -> None:
    assert client.generate("tiny").done_reason == "load"
    assert client.chat("tiny").message.content == ""
    with pytest.raises(ollama.ResponseError, match="there is no model 'big'"):
        client.generate("big")


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


WRONG: list[tuple[str, dict[str, Any], int, str]] = [
    ("chat", {"model": "big", "messages": MESSAGES}, 404, "there is no model 'big'"),
    ("chat", {"messages": MESSAGES}, 400, "model is missing"),
    ("chat", {"options": {"temprature": 1}}, 400, "did you mean 'temperature'"),
    ("chat", {"options": {"mirostat": 2}}, 400, "mirostat is not supported"),
    ("chat", {"options": {"num_predict": 0}}, 400, "num_predict must be 1 or more"),
    ("chat", {"options": {"num_ctx": 4096}}, 400, "at most 512"),
    ("chat", {"options": {"num_ctx": 10}}, 400, "num_ctx must hold the prompt"),
    ("chat", {"options": {"num_predict": 5000}}, 400, "the answer may have 5000"),
    ("chat", {"think": True}, 400, "does not support thinking"),
    ("chat", {"keep_alive": "soon"}, 400, "keep_alive"),
    ("chat", {"format": "yaml"}, 400, "format"),
    ("chat", {"format": {"type": "objekt"}}, 400, "objekt"),
    ("chat", {"messages": [{"role": "user", "content": "x", "images": ["?"]}]}, 400, "base64"),
    ("chat", {"messages": [{"role": "user", "content": "x", "images": [base64.b64encode(png()).decode()]}]},
     400, "no images"),
    ("chat", {"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role"),
    ("generate", {"template": "{{ .Prompt }}"}, 400, "template"),
    ("generate", {"suffix": "x"}, 400, "<PRE>"),
    ("generate", {"raw": True, "system": "x"}, 400, "cannot be had together"),
    ("generate", {"context": [10**6]}, 400, "1000000"),
    ("generate", {"prompt": "x " * 600}, 400, "the context of this model holds 512"),
    ("nothing", {}, 404, "no such path"),
    ("create", {}, 400, "puna convert"),
    ("push", {}, 400, "puna convert"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "changes", "status", "said"), WRONG)
def test_what_is_wrong_is_said_in_ollamas_shape(
    server: Running, path: str, changes: dict[str, Any], status: int, said: str
) -> None:
    base: dict[str, Any] = {"model": "tiny"} if changes != {"messages": MESSAGES} else {}
    if path == "chat":
        base["messages"] = MESSAGES
    if path == "generate":
        base["prompt"] = "Hi"
    answer = server.post(f"/api/{path}", {**base, **changes})
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert said in answer.json()["error"]
    assert not server.service.calls


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", None])
def test_bodies_are_json_whatever_their_type_is_called(server: Running, kind: str | None) -> None:
    """`curl -d` calls them forms. Browsers send those of any page without asking, so pages are told no."""
    body = json.dumps({"model": "tiny", "messages": MESSAGES, "stream": False, "options": GREEDY})
    headers = {} if kind is None else {"content-type": kind}
    found = httpx.post(f"{server.url}/api/chat", content=body, headers=headers, timeout=60)
    assert found.status_code == 200, found.text
    assert found.json()["done"]
    page = httpx.post(
        f"{server.url}/api/chat", content=body, headers={**headers, "origin": "https://a.example"}
    )
    assert page.status_code == 403


def test_options_of_hardware_are_named_as_ignored(server: Running) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "stream": False, "keep_alive": "5m",
            "options": {**GREEDY, "num_gpu": 1, "num_thread": 8, "mirostat": 0}}  # fmt: skip
    answer = server.post("/api/chat", body)
    assert answer.status_code == 200
    assert (
        answer.headers["x-puna-ignored"]
        == "keep_alive, options.mirostat, options.num_gpu, options.num_thread"
    )


def test_an_answer_that_breaks_off_says_so_in_its_last_line(
    server: Running, client: ollama.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = server.llm._engine._engine._executor
    step, n_steps = executor.step, 0

    def failing(batch: Any) -> Any:
        nonlocal n_steps
        n_steps += 1
        if n_steps == 4:
            raise RuntimeError("a fuse blew")
        return step(batch)

    monkeypatch.setattr(type(executor), "step", lambda _, batch: failing(batch))
    pieces = client.chat("tiny", MESSAGES, options={"temperature": 0, "num_predict": 40}, stream=True)
    with pytest.raises(ollama.ResponseError, match="a fuse blew"):
        list(pieces)


class Shelf:
    """A library that brings nothing, and says what it was asked for."""

    def __init__(self) -> None:
        self.said: list[tuple[str, ...]] = []
        self.is_held = threading.Event()
        self.was_cancelled = threading.Event()

    def pull(self, model: str, progress: Callable[[str, int, int | None], None]) -> None:
        self.said.append(("pull", model))
        if model == "nothing":
            raise UnknownModel("there is no model 'nothing'")
        for done in (0, 50, 100):
            progress(f"fetching {model}", done, 100)
        try:
            while model == "endless":
                progress("fetching", 1, None)
                self.is_held.wait(0.01)
        except Cancelled:
            self.was_cancelled.set()
            raise

    def copy(self, source: str, destination: str) -> None:
        self.said.append(("copy", source, destination))

    def remove(self, model: str) -> None:
        self.said.append(("remove", model))


@pytest.fixture
def shelf(server: Running, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    made = Shelf()
    monkeypatch.setattr(server.service, "library", made)
    return made


def test_models_are_pulled_copied_and_deleted(server: Running, client: ollama.Client, shelf: Shelf) -> None:
    updates = [*client.pull("smollm2", stream=True)]
    assert updates[0].status == "pulling manifest"
    assert updates[-1].status == "success"
    assert (updates[-2].completed, updates[-2].total) == (100, 100)
    assert client.pull("smollm2").status == "success"
    for stream in (True, False):
        with pytest.raises(ollama.ResponseError, match="there is no model 'nothing'"):
            [*client.pull("nothing", stream=stream)]  # type: ignore[call-overload]
    client.copy("smollm2", "mine:latest")
    client.delete("mine")
    with pytest.raises(ollama.ResponseError, match="is being served"):
        client.delete("tiny")
    pulls = [("pull", "smollm2")] * 2 + [("pull", "nothing")] * 2
    assert shelf.said == [*pulls, ("copy", "smollm2", "mine"), ("remove", "mine")]


def test_a_pull_ends_with_its_client(server: Running, client: ollama.Client, shelf: Shelf) -> None:
    updates = client.pull("endless", stream=True)
    next(iter(updates))
    with pytest.raises(ollama.ResponseError, match="another model is being pulled"):
        client.pull("smollm2")
    updates.close()  # type: ignore[attr-defined]
    assert shelf.was_cancelled.wait(30)


def test_strangers_change_nothing(start: Start, tmp_path: Path) -> None:
    keyed = start(ServerConfig(port=0), open_accounts(tmp_path, requires_keys=True))
    _, secret = keyed.service.accounts.keys.create("a", "t")
    keyed.service.library = shelf = Shelf()
    bearer = {"authorization": f"Bearer {secret}"}
    for headers, status in (({}, 401), (bearer, 403)):
        answer = httpx.post(f"{keyed.url}/api/pull", json={"model": "smollm2"}, headers=headers)
        assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert not shelf.said


def test_no_path_of_this_machine_is_pulled(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service, "library", StoreLibrary())
    for path in (str(server.llm.path), "./x.gguf", "~/x", "/etc", "../x", "meta-llama/Llama-3.2-1B"):
        answer = server.post("/api/pull", {"model": path, "stream": False})
        assert answer.status_code == 400
        assert "must be a name of the catalog" in answer.json()["error"]


def test_on_other_addresses_the_operator_has_to_allow_it(
    server: Running, client: ollama.Client, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.service, "config", ServerConfig(host="0.0.0.0"))
    with pytest.raises(ollama.ResponseError, match="allow_pull"):
        client.pull("smollm2")
    monkeypatch.setattr(server.service, "config", ServerConfig(host="0.0.0.0", allow_pull=True))
    assert client.pull("smollm2").status == "success"


@pytest.mark.parametrize(
    ("keep_alive", "gone"),
    [
        (0, True),
        ("0", True),
        ("0s", True),
        ("-0.0h0m", True),
        ("0" * 60 + "1", False),
        ("5m", False),
        (-1, False),
    ],
)
def test_only_nothing_lets_a_model_go(keep_alive: Any, gone: bool) -> None:
    """Nor does reading it take long: sixty zeros once took longer than anybody lives."""
    assert is_let_go(keep_alive) is gone
