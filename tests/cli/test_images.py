"""Pictures on the command line: puna run --image, and /image in a chat.

The model is a tiny text model, with the template of one that sees: what it is asked is looked at, not what
it answers.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli.test_chat import Recorder, said
from llm.tiny_llm import write_tiny_llm
from llm.tiny_vision import LLAMA32, TEMPLATE, TOKENS, picture, png

import puna.llm.images
from puna import LLM, SamplingParams
from puna.cli.conversation import Conversation
from puna.cli.main import main
from puna.cli.slash import Chat
from puna.core import BadFile, BadInput, Image, Request
from puna.engine.bridge import EngineThread
from puna.images import prepare
from puna.runtime.native import NativeExecutor

PARAMS = SamplingParams(temperature=0, max_tokens=4)
RUN = ["--temperature", "0", "--max-tokens", "4", "--threads", "1"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "seeing.gguf"
    return write_tiny_llm(path, template=TEMPLATE, control=TOKENS["llama3.2"])


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    with LLM(model, threads=1) as llm:
        yield llm


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Of all that is asked; every model sees what Llama 3.2 Vision would."""
    made: list[Request] = []
    stream = EngineThread.stream

    def noted(self: EngineThread, request: Request) -> Any:
        made.append(request)
        return stream(self, request)

    monkeypatch.setattr(EngineThread, "stream", noted)
    monkeypatch.setattr(puna.llm.images, "encoder_of", lambda *_: LLAMA32)
    monkeypatch.setattr(NativeExecutor, "n_image_positions", lambda *_: 1, raising=False)
    return made


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "one.png", tmp_path / "the other.png"]
    for path, width in zip(paths, (30, 90), strict=True):
        path.write_bytes(png(picture(width)))
    return paths


def digests(request: Request) -> list[bytes]:
    return [placed.image.digest for placed in request.images]


def seen(*paths: Path) -> list[bytes]:
    return [prepare(path, LLAMA32).digest for path in paths]


class Stdin(io.TextIOWrapper):
    def __init__(self, raw: bytes) -> None:
        super().__init__(io.BytesIO(raw), encoding="utf-8")


def test_run(model: Path, files: list[Path], requests: list[Request], monkeypatch: Any) -> None:
    assert main(["run", str(model), "What?", "--image", str(files[0]), "--image", str(files[1]), *RUN]) == 0
    monkeypatch.setattr(sys, "stdin", Stdin(b"What?"))
    assert main(["run", str(model), "--image", str(files[0]), "--image", str(files[1]), *RUN]) == 0
    monkeypatch.setattr(sys, "stdin", Stdin(files[1].read_bytes()))
    assert main(["run", str(model), "What?", "--image", str(files[0]), "--image", "-", *RUN]) == 0
    for request in requests:
        assert digests(request) == seen(*files)
        assert list(request.prompt) == list(requests[0].prompt)
        first, second = (placed.positions[0] for placed in request.images)
        assert second == first + 1  # both before the text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["What?", "--image", "nothing.png"], "'nothing.png' cannot be read as an image: No such file"),
        (["What?", "--image", "http://a/b.png"], "addresses are not opened"),
        (["--image", "-"], "stdin can be the prompt or an image, not both; give the prompt as an argument"),
        (["What?", "--image", "-", "--image", "-"], "stdin is one image, it is named twice; name files"),
        (["What?", "--image", "a.png", "--raw"], "--image needs a chat template, which --raw leaves out"),
    ],
)
def test_what_run_refuses(
    model: Path,
    requests: list[Request],
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", str(model), *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert requests == []


def test_a_text_model_is_not_loaded(
    model: Path, files: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puna.cli.run.load", None)
    assert main(["run", str(model), "What?", "--image", str(files[0])]) == 2
    assert capsys.readouterr().err == (
        "puna: seeing is a text model and sees no images, it was given one; use a vision model (Llama 3.2 "
        "Vision, Llama 4)\n"
    )


def test_without_an_image_nothing_of_it_is_imported(model: Path) -> None:
    code = (
        "import sys; from puna.cli.main import main\n"
        f"main(['run', {str(model)!r}, 'Hi', '--max-tokens', '2'])\n"
        "print('modules:', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("modules:")[2].split())
    assert loaded & {"PIL", "puna.images", "puna.llm.images", "puna.text.formats"} == set()
    assert "puna.llm.model" in loaded


def chat_of(llm: LLM, inputs: list[str] | None = None) -> Chat:
    return Chat(Conversation(llm, "seeing", PARAMS), Recorder(inputs))


def contents(chat: Chat) -> list[Any]:
    return [message["content"] for message in chat.conversation.messages]


def test_the_next_message_carries_images(llm: LLM, files: list[Path], requests: list[Request]) -> None:
    chat = chat_of(llm, [f"/image {files[0]}", f"/image '{files[1]}'", "What?", "And?", "/image"])
    chat.run()
    assert isinstance(chat.screen, Recorder)
    assert chat.screen.attached == [0, 1, 2, 0, 0, 0]
    notes = [text for text in said(chat) if "image" in text]
    assert notes == [
        "1 image with the next message", "2 images with the next message", "no images with the next message",
    ]  # fmt: skip
    # the conversation shows its images in every turn
    assert [digests(request) for request in requests] == [seen(*files)] * 2
    assert isinstance(contents(chat)[2], str)


def test_images_are_taken_back_and_come_back(llm: LLM, files: list[Path], requests: list[Request]) -> None:
    chat = chat_of(llm)
    chat.obey(f"/image {files[0]}")
    chat.obey("/image -")
    chat.obey("Hi")
    chat.obey(f"/image {files[0]}")
    chat.obey("What?")
    chat.obey("/undo")
    assert chat.draft == "What?"
    assert len(chat.conversation.attached) == 1
    chat.obey("What now?")
    chat.obey(f"/image {files[1]}")  # for the message after
    chat.obey("/retry")
    assert [digests(request) for request in requests] == [[]] + [seen(files[0])] * 3
    assert len(chat.conversation.attached) == 1
    chat.obey("And this?")
    assert digests(requests[-1]) == seen(*files)
    chat.obey(f"/image {files[1]}")
    chat.obey("/reset")
    chat.obey("Hi")
    assert digests(requests[-1]) == []


def test_images_wait_for_an_answer(llm: LLM, files: list[Path], requests: list[Request]) -> None:
    chat = chat_of(llm)
    assert isinstance(chat.screen, Recorder)
    chat.obey(f"/image {files[0]}")
    chat.screen.interrupts = True
    chat.obey("What?")
    chat.screen.interrupts = False
    if not chat.conversation.messages:  # interrupted before there was a word
        assert len(chat.conversation.attached) == 1
        chat.obey("What?")
    assert chat.conversation.attached == []
    assert [digests(request) for request in requests] == [seen(files[0])] * len(requests)


def test_a_saved_chat_has_its_images(
    llm: LLM, files: list[Path], requests: list[Request], tmp_path: Path
) -> None:
    chat = chat_of(llm)
    chat.obey(f"/image {files[0]}")
    chat.obey("What?")
    path = tmp_path / "chat.json"
    chat.obey(f"/save {path}")
    files[0].unlink()
    content = json.loads(path.read_text())["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "text"]
    other = chat_of(llm)
    other.obey(f"/load {path}")
    assert contents(other) == contents(chat)
    other.obey("And?")
    assert digests(requests[1]) == digests(requests[0])
    # the same form asks the API
    llm.chat([{"role": "user", "content": content}], PARAMS)
    assert digests(requests[2]) == digests(requests[0])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([], "not a saved chat"),
        ([{"type": "text", "text": "a"}], "not a saved chat"),
        ([{"type": "image", "image": "/etc/passwd"}, {"type": "text", "text": "a"}], "not a saved chat"),
        ([{"type": "image_url", "image_url": {"url": "a"}}, {"type": "text", "text": 5}], "not a saved chat"),
        ([{"type": "image_url", "image_url": {"url": "/a"}}, {"type": "text", "text": "a"}], "a data URL"),
        (
            [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                {"type": "text", "text": "a"},
            ],
            "must be a JPEG, PNG, WebP or GIF file",
        ),
    ],
)
def test_chats_with_bad_images(
    llm: LLM, requests: list[Request], tmp_path: Path, content: Any, sentence: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({"puna_chat": 1, "messages": [{"role": "user", "content": content}]}))
    chat = chat_of(llm)
    with pytest.raises(BadFile, match=sentence):
        chat.obey(f"/load {path}")
    assert contents(chat) == []


def test_a_text_model_refuses_at_once(llm: LLM, files: list[Path]) -> None:
    chat = chat_of(llm)
    with pytest.raises(BadInput, match="seeing is a text model and sees no images"):
        chat.obey(f"/image {files[0]}")
    with pytest.raises(BadFile, match=r"'nothing.png' cannot be read as an image"):
        chat.obey("/image nothing.png")
    assert chat.conversation.attached == []


def test_an_image_is_prepared_once(
    llm: LLM, files: list[Path], requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Image] = []
    image = LLM.image

    def counted(self: LLM, source: Any) -> Image:
        made.append(image(self, source))
        return made[-1]

    monkeypatch.setattr(LLM, "image", counted)
    chat = chat_of(llm)
    chat.obey(f"/image {files[0]}")
    for text in ("a", "b", "/retry"):
        chat.obey(text)
    assert len(made) == 1
    assert all(request.images[0].image is made[0] for request in requests)
