"""langchain-openai: chat, streams, tools and their results, structured output, pictures, errors."""

from __future__ import annotations

import base64
from typing import Any, Literal

import openai
import pytest
from llm.tiny_vision import png
from pydantic import BaseModel, SecretStr
from server.clients.conftest import HELLO
from server.conftest import Running

langchain_openai = pytest.importorskip("langchain_openai", reason="needs its package (make test-clients)")
from langchain_core.exceptions import ContextOverflowError  # noqa: E402
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage  # noqa: E402
from langchain_core.tools import tool  # noqa: E402

QUESTION = [SystemMessage("Be brief."), HumanMessage("Hi")]


class Animal(BaseModel):
    """An animal."""

    kind: Literal["llama", "alpaca"]
    age: int


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def model(server: Running, **changes: Any) -> Any:
    options: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_retries": 0, "timeout": 60, **changes}
    return langchain_openai.ChatOpenAI(base_url=f"{server.url}/v1", api_key=SecretStr("none"), **options)


BOTH = pytest.mark.parametrize("by_responses", [False, True], ids=["chat", "responses"])


@BOTH
def test_an_answer_and_its_stream(talker: Running, by_responses: bool) -> None:
    llm = model(talker, use_responses_api=by_responses, stream_usage=True)
    found = llm.invoke(QUESTION)
    assert found.text == HELLO
    pieces = [*llm.stream(QUESTION)]
    assert "".join(piece.text for piece in pieces) == HELLO
    assert len([piece for piece in pieces if piece.text]) > 3
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    for usage in (found.usage_metadata, whole.usage_metadata):
        assert usage["output_tokens"] == len(talker.llm.tokenizer.encode(HELLO)) + 1
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


@BOTH
def test_tools_are_called_and_answered(talker: Running, by_responses: bool) -> None:
    llm = model(talker, use_responses_api=by_responses).bind_tools([weather])
    messages: list[Any] = [HumanMessage("Weather in Lima and Cusco?")]
    whole = None
    for piece in llm.stream(messages):
        whole = piece if whole is None else whole + piece
    found = llm.invoke(messages)
    for answer in (found, whole):
        assert [(call["name"], call["args"]) for call in answer.tool_calls] == [
            ("weather", {"city": "Lima"}),
            ("weather", {"city": "Cusco"}),
        ]
    results = [
        ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]) for call in found.tool_calls
    ]
    assert llm.invoke([*messages, found, *results]).text == "It is sunny in Cusco there."
    assert llm.invoke("Hi").text == HELLO


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")  # of the client's own classes
@BOTH
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output(talker: Running, by_responses: bool, method: str) -> None:
    llm = model(talker, use_responses_api=by_responses).with_structured_output(Animal, method=method)
    assert llm.invoke("Show an animal, in JSON.") == Animal(kind="llama", age=3)
    assert [*llm.stream("Show an animal, in JSON.")][-1] == Animal(kind="llama", age=3)


@BOTH
def test_pictures(talker: Running, by_responses: bool) -> None:
    data = base64.b64encode(png()).decode()
    picture = {"type": "image", "base64": data, "mime_type": "image/png"}
    old = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    llm = model(talker, use_responses_api=by_responses)
    found = llm.invoke([HumanMessage([{"type": "text", "text": "What?"}, picture, old])])
    assert found.text == "I see 2 pictures."


def test_errors_are_typed(talker: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'big'"):
        model(talker, model="big").invoke("Hi")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        model(talker, temperature=9).invoke("Hi")
    with pytest.raises(ContextOverflowError):
        model(talker).invoke("word " * 3000)
    no_picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    with pytest.raises(openai.BadRequestError, match="image"):
        model(talker).invoke([HumanMessage([no_picture])])


def test_texts_are_embedded(talker: Running) -> None:
    embeddings = langchain_openai.OpenAIEmbeddings(
        model="tiny", base_url=f"{talker.url}/v1", api_key=SecretStr("none"), check_embedding_ctx_length=False
    )
    one, other = embeddings.embed_documents(["the", "other day"])
    assert embeddings.embed_query("the") == pytest.approx(one)
    assert len(one) == 64
    assert one != other
