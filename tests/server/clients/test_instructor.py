"""instructor over OpenAI's client: answers as classes, asked again where they are not valid, in pieces as
they come, from pictures."""

from __future__ import annotations

import base64
from typing import Any, Literal

import pytest
from llm.tiny_vision import png
from pydantic import BaseModel
from server.conftest import Running

instructor = pytest.importorskip("instructor", reason="needs its package (make test-clients)")
from instructor.core.exceptions import InstructorRetryException  # noqa: E402


class Animal(BaseModel):
    """An animal."""

    kind: Literal["llama", "alpaca"]
    age: int


class YoungAnimal(Animal):
    """The bound is not in the schema, so that no grammar can hold an answer to it."""

    def model_post_init(self, context: Any) -> None:
        if self.age > 30:
            raise ValueError("an animal is at most 30 years old")


MODES = pytest.mark.parametrize("mode", ["TOOLS", "JSON", "JSON_SCHEMA", "MD_JSON"])


def ask(server: Running, mode: str, text: Any, kind: Any, method: str = "create", **more: Any) -> Any:
    client = instructor.from_openai(server.openai(), mode=getattr(instructor.Mode, mode))
    messages = [{"role": "user", "content": text}]
    make = getattr(client.chat.completions, method)
    return make(model="tiny", messages=messages, response_model=kind, temperature=0, **more)


@MODES
def test_an_answer_is_a_class(talker: Running, mode: str) -> None:
    assert ask(talker, mode, "Show an animal.", Animal).model_dump() == {"kind": "llama", "age": 3}


@MODES
def test_an_answer_comes_in_pieces(talker: Running, mode: str) -> None:
    pieces = [*ask(talker, mode, "Show an animal.", Animal, "create_partial")]
    assert pieces[-1].model_dump() == {"kind": "llama", "age": 3}


@MODES
def test_an_answer_that_is_not_valid_is_asked_for_again(talker: Running, mode: str) -> None:
    text = "Show an old animal."
    assert ask(talker, mode, text, YoungAnimal, max_retries=1).age == 3
    with pytest.raises(InstructorRetryException, match="at most 30 years old"):
        ask(talker, mode, text, YoungAnimal, max_retries=0)


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_pictures_and_errors(talker: Running, mode: str) -> None:
    picture = instructor.Image.from_base64(f"data:image/png;base64,{base64.b64encode(png()).decode()}")
    assert ask(talker, mode, ["Which animal?", picture], Animal).kind == "llama"
    with pytest.raises(InstructorRetryException, match="prompt is too long"):
        ask(talker, mode, "word " * 3000, Animal)
