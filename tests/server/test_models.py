"""Several models and adapters behind one address, as clients and operators see them."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import ollama
import openai
import pytest
from llm.tiny_llm import write_tiny_llm
from server.conftest import Running, Start, open_accounts
from server.test_operations import home, until
from weights.random_adapter import write_random_adapter

from puna import LLM
from puna.cli import serve, serve_settings
from puna.cli.serve import _adapter, _split
from puna.core import BadInput, BadValue
from puna.llm.adapted import AdaptedModels
from puna.llm.budget import Budget, LLMLoader
from puna.llm.models import ModelPool
from puna.server.config import ServerConfig, parse_bytes
from puna.server.tenants.limits import Limits
from puna.weights import store

MESSAGES: Any = [{"role": "user", "content": "Name a colour."}]
GREEDY: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_tokens": 12}
LOADER: dict[str, Any] = {"threads": 1, "context": 256, "batch": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    for name, context in (("one", 256), ("two", 512)):
        write_tiny_llm(folder / f"{name}.gguf", context=context, n_layers=2 if name == "one" else 3)
    with LLM(folder / "one.gguf", **LOADER) as llm:
        for seed in (1, 2):
            write_random_adapter(folder / f"a{seed}", llm.config, seed)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, str]:
    """What the Python API says."""
    found = {}
    for name in ("one", "two"):
        with LLM(folder / f"{name}.gguf", **LOADER) as llm:
            found[name] = llm.chat(MESSAGES, temperature=0, max_tokens=12).text
            if name == "one":
                for seed in (1, 2):
                    view = llm.load_adapter(f"a{seed}", folder / f"a{seed}")
                    found[f"a{seed}"] = view.chat(MESSAGES, temperature=0, max_tokens=12).text
    assert len(set(found.values())) == 4
    return found


@pytest.fixture(scope="module")
def house(start: Start, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Running, str]:
    """Room for one of two models at a time; and the operator's key."""
    loader = LLMLoader(**LOADER)
    places = [(name, folder / f"{name}.gguf") for name in ("one", "two")]
    most = max(loader.measure(path)[1] for _, path in places) + 2_000_000
    accounts = open_accounts(tmp_path_factory.mktemp("ledger"))
    key = accounts.keys.create("root", "house", scopes=("inference", "admin"))[1]
    models = AdaptedModels(ModelPool(places, loader, Budget(most, 2)))
    return start(ServerConfig(port=0), accounts, models=models), key


def say(running: Running, model: str) -> str:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        return client.chat.completions.create(model=model, **GREEDY).choices[0].message.content or ""


def admin(house: tuple[Running, str], path: str, **body: Any) -> httpx.Response:
    running, key = house
    return httpx.post(running.url + path, json=body, headers={"authorization": f"Bearer {key}"}, timeout=60)


def listed(running: Running) -> dict[str, dict[str, Any]]:
    return listed_by(running, "none")


def listed_by(running: Running, key: str) -> dict[str, dict[str, Any]]:
    headers = {"authorization": f"Bearer {key}"}
    return {
        card["id"]: card for card in httpx.get(f"{running.url}/v1/models", headers=headers).json()["data"]
    }


def test_models_take_turns_where_there_is_room_for_one(
    house: tuple[Running, str], expected: dict[str, str]
) -> None:
    running, _ = house
    assert [card["state"] for card in listed(running).values()] == ["loaded", "unloaded"]
    for name in ("two", "one", "two", "two", "one"):
        assert say(running, name) == expected[name]
    assert {name: card["state"] for name, card in listed(running).items()} == {
        "one": "loaded",
        "two": "unloaded",
    }
    assert listed(running)["two"]["max_model_len"] is None
    with pytest.raises(
        openai.NotFoundError, match="there is no model 'three' here; this server has one, two"
    ):
        say(running, "three")


def test_ollamas_clients_see_what_is_in_memory_and_operators_take_it_out(
    house: tuple[Running, str], expected: dict[str, str]
) -> None:
    running, _ = house
    say(running, "one")
    with ollama.Client(running.url) as client:
        assert [model.model for model in client.ps().models] == ["one"]
        found = {model.model: model for model in client.list().models}
        assert list(found) == ["one", "two"]
        assert found["two"].digest  # its file was read, it was not loaded
        assert client.show("two").capabilities == ["completion", "tools"]
        assert [model.model for model in client.ps().models] == ["one"]
        done = client.generate("one", keep_alive=0)
        assert done.done_reason == "unload"
        assert client.ps().models == []
        assert say(running, "one") == expected["one"]
        with pytest.raises(ollama.ResponseError, match="no model 'ten'"):
            client.generate("ten", keep_alive=0)


def test_the_operators_page_and_figures_tell_what_is_in_memory(
    house: tuple[Running, str], folder: Path
) -> None:
    running, _ = house
    body = {"lora_name": "a1", "lora_path": str(folder / "a1"), "base_model_name": "one"}
    assert admin(house, "/v1/load_lora_adapter", **body).status_code == 200
    say(running, "a1")
    page = httpx.get(running.url).text
    rows = re.findall(r'<th scope="row">(one|two|a1)</th>\s*<td class="text">(.*?)</td>', page)
    assert rows == [("one", "loaded"), ("a1", "adapter of one"), ("two", "on disk")]
    figures = httpx.get(f"{running.url}/metrics").text
    for name, value in (("one", 1), ("a1", 1), ("two", 0)):
        assert f'puna_model_loaded{{model="{name}"}} {value}.0' in figures
    assert 'puna_model_context_tokens{model="one"} 256.0' in figures
    assert 'puna_model_context_tokens{model="two"}' not in figures
    assert admin(house, "/v1/unload_lora_adapter", lora_name="a1").status_code == 200


def test_who_may_take_a_model_out_of_memory(
    house: tuple[Running, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    running, root = house
    say(running, "one")
    body = {"model": "one", "keep_alive": 0}
    accounts = running.service.accounts
    monkeypatch.setattr(accounts, "requires_keys", True)
    for secret, status in ((accounts.keys.create("test", "acme")[1], 403), (root, 200)):
        headers = {"authorization": f"Bearer {secret}"}
        answer = httpx.post(f"{running.url}/api/generate", json=body, headers=headers, timeout=60)
        assert answer.status_code == status
        assert (listed_by(running, root)["one"]["state"] == "loaded") == (status == 403)


ASKED = [
    ("/api/chat", {"messages": MESSAGES}), ("/api/generate", {"prompt": "a"}), ("/api/embed", {"input": "a"}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "asked"), ASKED)
@pytest.mark.parametrize("keep_alive", [0, "0s"])
def test_a_model_can_be_let_go_with_a_request(
    house: tuple[Running, str], path: str, asked: dict[str, Any], keep_alive: Any
) -> None:
    running, _ = house
    body = {"model": "one", "keep_alive": keep_alive, **asked}
    if path != "/api/embed":
        body["options"] = {"num_predict": 2}
    answer = running.post(path, body)
    assert answer.status_code == 200
    assert "x-puna-ignored" not in answer.headers
    until(lambda: listed(running)["one"]["state"] == "unloaded")
    running.post(path, {**body, "keep_alive": "5m"})
    assert listed(running)["one"]["state"] == "loaded"


def test_a_client_that_vanishes_lets_it_go_too(house: tuple[Running, str]) -> None:
    running, _ = house
    body = {"model": "one", "prompt": "a", "keep_alive": 0, "options": {"num_predict": 200}}
    with httpx.stream("POST", f"{running.url}/api/generate", json=body, timeout=60) as answer:
        next(answer.iter_lines())
    until(lambda: listed(running)["one"]["state"] == "unloaded")


def test_only_an_operator_lets_a_model_go(
    house: tuple[Running, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    running, root = house
    say(running, "one")
    accounts = running.service.accounts
    monkeypatch.setattr(accounts, "requires_keys", True)
    secret = accounts.keys.create("let go", "acme")[1]
    for path, asked in ASKED:
        body = {"model": "one", "keep_alive": 0, **asked}
        headers = {"authorization": f"Bearer {secret}"}
        answer = httpx.post(running.url + path, json=body, headers=headers, timeout=60)
        assert answer.status_code == 200
        assert answer.headers["x-puna-ignored"] == "keep_alive"
    assert listed_by(running, root)["one"]["state"] == "loaded"


def test_a_model_in_use_is_not_taken_out_of_memory(house: tuple[Running, str]) -> None:
    running, _ = house
    say(running, "one")
    use = running.models.hold("one")
    assert use is not None
    answer = running.post("/api/chat", {"model": "one", "messages": [], "keep_alive": 0})
    assert answer.status_code == 409
    assert "is answering requests" in answer.json()["error"]
    use.release()
    assert running.post("/api/chat", {"model": "one", "messages": [], "keep_alive": 0}).status_code == 200


def test_a_crowd_that_asks_for_both_is_answered(house: tuple[Running, str], expected: dict[str, str]) -> None:
    running, _ = house
    answers: dict[int, str] = {}

    def ask(i: int) -> None:
        answers[i] = say(running, ("one", "two")[i % 2])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {i: expected[("one", "two")[i % 2]] for i in range(16)}
    until(lambda: running.service.n_in_flight == 0)


def test_the_end_of_the_drain_tells_those_who_wait_for_a_model(
    start: Start, folder: Path, tmp_path: Path
) -> None:
    loader = LLMLoader(**LOADER)
    places = [(name, folder / f"{name}.gguf") for name in ("one", "two")]
    most = max(loader.measure(path)[1] for _, path in places) + 2_000_000
    models = AdaptedModels(ModelPool(places, loader, Budget(most, 2)))
    running = start(ServerConfig(port=0, grace=0.2), open_accounts(tmp_path), models=models)
    use = running.models.hold("one")  # and "two" has to wait
    assert use is not None
    with ThreadPoolExecutor(1) as clients:
        asked = clients.submit(running.post, "/v1/chat/completions", {"model": "two", **GREEDY})
        until(lambda: running.service.n_in_flight == 1)
        running.service.is_draining = True
        answer = asked.result()
    assert answer.status_code == 503, answer.text
    assert "shut down" in answer.json()["error"]["message"]
    use.release()


def test_adapters_come_and_go_while_the_server_runs(
    house: tuple[Running, str], folder: Path, expected: dict[str, str]
) -> None:
    running, _ = house
    for seed in (1, 2):
        body = {"lora_name": f"a{seed}", "lora_path": str(folder / f"a{seed}"), "base_model_name": "one"}
        assert admin(house, "/v1/load_lora_adapter", **body).status_code == 200
    cards = listed(running)
    assert cards["a1"]["parent"] == cards["a1"]["root"] == "one"
    assert cards["one"]["parent"] is None
    for name in ("a1", "one", "a2", "one:a1", "two", "a1"):  # the base is unloaded and loaded again
        assert say(running, name) == expected[name.removeprefix("one:")]
    assert admin(house, "/v1/unload_lora_adapter", lora_name="a1").status_code == 200
    with pytest.raises(openai.NotFoundError, match="no model 'a1'"):
        say(running, "a1")
    assert say(running, "a2") == expected["a2"]
    assert admin(house, "/v1/unload_lora_adapter", lora_name="a2").status_code == 200
    assert list(listed(running)) == ["one", "two"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"lora_name": "x", "lora_path": "/nowhere"}, 400, "several models; say which"),
        ({"lora_name": "x", "lora_path": "/nowhere", "base_model_name": "one"}, 400, "must be a folder with"),
        ({"lora_name": "x", "lora_path": "/nowhere", "base_model_name": "ten"}, 404, "no model 'ten'"),
        ({"lora_name": "two", "lora_path": "/nowhere", "base_model_name": "one"}, 400, "'two' is taken"),
        ({"lora_name": "a:b", "lora_path": "/nowhere", "base_model_name": "one"}, 400, "a name must be"),
        ({"lora_name": "x"}, 400, "lora_path"),
    ],
)
def test_a_bad_adapter_is_refused_in_one_sentence(
    house: tuple[Running, str], body: dict[str, Any], status: int, message: str
) -> None:
    answer = admin(house, "/v1/load_lora_adapter", **body)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


def test_only_the_operator_may_load_and_unload(house: tuple[Running, str], folder: Path) -> None:
    running, _ = house
    key = running.service.accounts.keys.create("test", "acme", limits=Limits())[1]
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        body = {"lora_name": "x", "lora_path": str(folder / "a1")} if "un" not in path else {"lora_name": "x"}
        assert httpx.post(running.url + path, json=body).status_code in (401, 403)
        headers = {"authorization": f"Bearer {key}"}
        assert httpx.post(running.url + path, json=body, headers=headers).status_code == 403
    assert admin(house, "/v1/unload_lora_adapter", lora_name="x").status_code == 404


def test_a_client_that_goes_away_while_its_model_loads_leaves_nothing(
    house: tuple[Running, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    running, _ = house
    say(running, "one")
    gate = threading.Event()
    load = LLMLoader.load
    monkeypatch.setattr(LLMLoader, "load", lambda *args: (gate.wait(30), load(*args))[1])
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{running.url}/v1/chat/completions", json={"model": "two", **GREEDY}, timeout=0.3)
    assert httpx.get(f"{running.url}/health").status_code == 200  # the loop is not held up
    until(lambda: running.service.n_in_flight == 0)
    gate.set()
    assert say(running, "one") == expected["one"]


def test_a_model_that_never_fits_is_503_with_both_numbers(start: Start, folder: Path) -> None:
    loader = LLMLoader(**LOADER)
    least = loader.measure(folder / "one.gguf")[1]

    class Sized(LLMLoader):
        def measure(self, path: Path) -> tuple[int, int]:
            return (least, least) if path.stem == "one" else (10**12, 10**12)

    pool = ModelPool(
        [("one", folder / "one.gguf")],
        Sized(**LOADER),
        Budget(least, 1),
        find=lambda name: ("two", folder / "two.gguf"),
    )
    running = start(ServerConfig(port=0), models=AdaptedModels(pool))
    answer = running.post("/v1/chat/completions", {"model": "two", **GREEDY})
    assert answer.status_code == 503
    error = answer.json()["error"]
    assert error["code"] == "insufficient_memory"
    assert "two needs at least 1000.00 GB" in error["message"]
    assert say(running, "one")


def test_every_pulled_model_is_served_where_the_operator_says_so(
    start: Start, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, str]
) -> None:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "store"))
    store.pull(str(folder / "two.gguf"), name="mine")
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    flags = ["--threads", "1", "--context", "256", "--batch", "4"]
    args = serve_settings.fill(parser.parse_args([str(folder / "one.gguf"), *flags]))
    for is_open in (True, False):
        config = ServerConfig(port=0, any_model=is_open, idle_unload=0.05)
        running = start(config, models=serve._pool(args, config))
        if not is_open:
            with pytest.raises(openai.NotFoundError, match="this server has one"):
                say(running, "mine")
            continue
        assert list(listed(running)) == ["one", "mine"]
        assert say(running, "Mine") == expected["two"]
        until(lambda: all(card["state"] == "unloaded" for card in listed(running).values()))  # noqa: B023
        assert say(running, "mine") == expected["two"]
        for path in (str(folder / "two.gguf"), "../two", "hf:a/b", ""):
            with pytest.raises(openai.APIStatusError) as raised:
                say(running, path)
            assert raised.value.status_code in (400, 404)


def test_arguments_of_the_command_line_have_names() -> None:
    assert _split("smollm2") == ("smollm2", "smollm2")
    assert _split("./dir/model.gguf") == ("model", "./dir/model.gguf")
    assert _split("small=./model.gguf") == ("small", "./model.gguf")
    with pytest.raises(BadInput, match="a name must be"):
        _split("a b=./model.gguf")
    assert _adapter("pirate=./p") == (None, "pirate", Path("p"))
    assert _adapter("small:pirate=./p") == ("small", "pirate", Path("p"))
    with pytest.raises(BadInput, match="--adapter must be NAME=PATH"):
        _adapter("./p")


def test_sizes_are_read_with_their_units() -> None:
    assert parse_bytes("memory", "8GiB") == 8 << 30
    assert parse_bytes("memory", "1.5 gb") == 1_500_000_000
    assert parse_bytes("memory", "900000") == 900_000
    for bad in ("", "GiB", "-1", "0", "8 potatoes", "8XB", "1e9"):
        with pytest.raises(BadValue, match="memory must be a number of bytes"):
            parse_bytes("memory", bad)


def test_the_command_serves_what_it_is_told_to(
    folder: Path, tmp_path: Path, expected: dict[str, str]
) -> None:
    command = [
        sys.executable,
        "-m",
        "puna",
        "serve",
        f"small={folder / 'one.gguf'}",
        str(folder / "two.gguf"),
    ]
    command += [
        "--adapter",
        f"small:a1={folder / 'a1'}",
        "--port",
        "0",
        "--memory",
        "900MB",
        "--threads",
        "1",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=home(tmp_path))
    try:
        assert process.stderr is not None
        url = next(line for line in process.stderr if "Serving" in line).split(" at ")[1].split("/v1")[0]
        cards = httpx.get(f"{url}/v1/models").json()["data"]
        assert [(card["id"], card["parent"]) for card in cards] == [
            ("small", None),
            ("a1", "small"),
            ("two", None),
        ]
        answer = httpx.post(f"{url}/v1/chat/completions", json={"model": "a1", **GREEDY}, timeout=60)
        assert answer.json()["choices"][0]["message"]["content"] == expected["a1"]
        assert answer.json()["model"] == "a1"
    finally:
        process.terminate()
        assert process.wait(30) == 0
        process.stderr.close()  # type: ignore[union-attr]


def test_a_file_that_cannot_be_loaded_is_named_to_nobody(start: Start, folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(60))
    find = {"broken": ("broken", broken)}.get
    pool = ModelPool([("one", folder / "one.gguf")], LLMLoader(**LOADER), Budget(None, 2), find=find)
    running = start(ServerConfig(port=0), models=AdaptedModels(pool))
    answer = running.post("/v1/chat/completions", {"model": "broken", **GREEDY})
    assert answer.status_code == 500
    assert "broken could not be loaded, the server's log says why" in answer.json()["error"]["message"]
    assert "/" not in answer.json()["error"]["message"]
