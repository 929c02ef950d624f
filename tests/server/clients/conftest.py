"""A server for other people's clients: all of it is real, but for what its model says.

The model answers by what it is asked, so that a client's loop of questions, calls and results can be followed
from its end: see `reply`. Its answers go through the engine token by token, held to the grammars of requests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from llm.tiny_llm import write_tiny_llm
from llm.tiny_vision import LLAMA4, TEMPLATE, TOKENS, let_see
from server.conftest import Running, Start
from server.structured.scripted import Script

from puna import LLM
from puna.server.config import ServerConfig

HELLO = "Hello, wörld! 🦙"
ANIMAL = '{"kind": "llama", "age": 3}'
OLD_ANIMAL = '{"kind": "llama", "age": 99}'


@pytest.fixture(scope="module")
def talker(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = write_tiny_llm(
        tmp_path_factory.mktemp("talker") / "tiny.gguf",
        template=TEMPLATE,
        control=TOKENS["llama4"],
        context=2048,
    )
    llm = LLM(path, threads=1, batch=64)
    let_see(llm, LLAMA4)
    running = start(ServerConfig(port=0), llm=llm)
    with pytest.MonkeyPatch.context() as patch:
        script = Script(running, patch)
        ask = llm.chat_request

        def chat_request(messages: Sequence[Any], params: Any, **more: Any) -> Any:
            script.say(reply(messages, more.get("tools") or ()))
            return ask(messages, params, **more)

        patch.setattr(llm, "chat_request", chat_request)
        yield running


def reply(messages: Sequence[Any], tools: Sequence[Any] = ()) -> str:
    """What is said to a conversation: calls of the first tool, their results, animals, how many pictures.

    Who asks for an old animal gets one that is too old, until they complain of it.
    """
    text, n_pictures = _read(messages[-1]["content"])
    asked = " ".join(_read(message["content"])[0] for message in messages)
    if messages[-1]["role"] == "tool" and "animal" not in asked:
        return f"It is {text} there."
    if "Weather in " in text and tools:
        cities = text.partition("Weather in ")[2].partition("?")[0].split(" and ")
        return "; ".join(_call(tools, {"city": city}) for city in cities)
    if "animal" in asked:
        is_first = all(message["role"] != "assistant" for message in messages)
        animal = OLD_ANIMAL if "old animal" in asked and is_first else ANIMAL
        return _call(tools, json.loads(animal)) if tools else animal
    return f"I see {n_pictures} pictures." if n_pictures else HELLO


def _call(tools: Sequence[Any], arguments: dict[str, Any]) -> str:
    return json.dumps({"name": tools[0]["function"]["name"], "parameters": arguments})


def _read(content: Any) -> tuple[str, int]:
    """The text of a message and the number of its pictures."""
    if isinstance(content, str):
        return content, 0
    texts = [part["text"] for part in content or () if part["type"] == "text"]
    return " ".join(texts), len(content or ()) - len(texts)


NODE = Path(__file__).parent / "node"


@pytest.fixture(scope="session", autouse=True)
def _offline() -> Iterator[None]:
    """litellm asks the network for prices when it is imported, unless told not to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        yield
