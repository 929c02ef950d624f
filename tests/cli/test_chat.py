"""puna chat: commands, files, a pipe, and a real session on a pseudo-terminal."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import signal
import stat
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from puna import LLM
from puna.cli.conversation import Conversation
from puna.cli.main import main
from puna.cli.slash import COMMANDS, Chat
from puna.core import BadFile, BadInput, BadValue, PromptTooLong, SamplingParams, UnknownOption, WorkFailed
from puna.llm.answer import Answer

PARAMS = SamplingParams(temperature=0, top_p=0.9, max_tokens=8)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[LLM]:
    with LLM(tiny, threads=1) as llm:
        yield llm


class Recorder:
    """A screen that is read by a test."""

    forgives = False

    def __init__(self, inputs: list[str] | None = None) -> None:
        self.inputs = inputs or []
        self.drafts: list[str] = []
        self.attached: list[int] = []
        self.said: list[str] = []
        self.interrupts = False

    def read(self, draft: str = "", n_images: int = 0) -> str | None:
        self.drafts.append(draft)
        self.attached.append(n_images)
        return self.inputs.pop(0) if self.inputs else None

    def show(self, answer: Answer) -> None:
        if self.interrupts:
            answer.close()
        for _ in answer:
            pass

    def say(self, text: str) -> None:
        self.said.append(text)

    def whisper(self, text: str) -> None:
        self.said.append(f"({text})")


@pytest.fixture
def chat(llm: LLM) -> Chat:
    return Chat(Conversation(llm, "tiny", PARAMS), Recorder())


def said(chat: Chat) -> list[str]:
    assert isinstance(chat.screen, Recorder)
    return chat.screen.said


def roles(chat: Chat) -> str:
    return "".join(message["role"][0] for message in chat.conversation.messages)


def test_answers_follow_the_whole_conversation(chat: Chat, llm: LLM) -> None:
    chat.obey("first")
    chat.obey("//second")  # a message that begins with a slash
    messages = chat.conversation.messages
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert messages[2]["content"] == "/second"
    assert messages[3]["content"] == llm.chat(messages[:3], PARAMS).text
    assert "context" in said(chat)[-2]
    assert said(chat)[-1] == "(max_tokens is reached; /params max_tokens=null lifts it)"


def test_a_path_is_no_command(chat: Chat) -> None:
    chat.obey("/etc/hosts is what?")
    assert chat.conversation.messages[0]["content"] == "/etc/hosts is what?"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("/sats", "there is no command /sats; did you mean '/stats'?"),
        ("/xyzzyx", "there is no command /xyzzyx; /help lists the commands"),
        ("/undo", "there is no message to take back yet"),
        ("/retry", "there is no message to take back yet"),
        ("/reset now", "/reset takes no argument, got 'now'; // begins a message with a slash"),
        ("/save", "name a file, as in /save chat.json"),
        ("/params 5", "parameters are set as in /params temperature=0.2 top_p=1, got '5'"),
    ],
)
def test_bad_commands(chat: Chat, text: str, sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        chat.obey(text)
    assert str(caught.value) == sentence


def test_system(chat: Chat) -> None:
    chat.obey("/system")
    chat.obey("/system Be\nbrief.")
    chat.obey("hello")
    assert roles(chat) == "sua"
    chat.obey("/system Be long.")
    assert chat.conversation.messages[0] == {"role": "system", "content": "Be long."}
    chat.obey("/reset")
    assert roles(chat) == "s"
    chat.obey("/system -")
    assert roles(chat) == ""
    assert [text for text in said(chat) if "system" in text] == [
        "no system message",
        "system: Be\nbrief.",
        "system: Be long.",
        "no system message",
    ]


def test_undo_and_retry(chat: Chat) -> None:
    # an answer that ends at once would leave nothing to undo
    chat.conversation.params = SamplingParams(temperature=2, max_tokens=8, ignore_end=True)
    chat.obey("first")
    chat.obey("second")
    before = chat.conversation.messages[3]["content"]
    chat.obey("/retry")
    assert roles(chat) == "uaua"
    assert chat.conversation.messages[3]["content"] != before
    chat.obey("/undo")
    assert (roles(chat), chat.draft) == ("ua", "second")


def test_the_context_in_use_follows_undo(chat: Chat) -> None:
    chat.obey("/system Be brief.")
    chat.obey("first")
    used = chat.conversation.n_context
    assert used > 0
    chat.obey("second")
    assert chat.conversation.n_context > used
    chat.obey("/undo")
    assert chat.conversation.n_context == used
    chat.obey("/undo")
    chat.obey("/stats")
    assert any("context  0 of" in text for text in said(chat))


def test_interrupted_before_the_first_word(chat: Chat) -> None:
    assert isinstance(chat.screen, Recorder)
    chat.obey("first")
    kept = [*chat.conversation.messages]
    chat.screen.interrupts = True
    chat.obey("second")
    assert (chat.conversation.messages, chat.draft) == (kept, "second")
    chat.draft = ""
    chat.obey("/retry")  # no other answer came: the old one stays
    assert (chat.conversation.messages, chat.draft) == (kept, "")


def test_params(chat: Chat) -> None:
    chat.obey('/params temperature=0.5 stop=["x"] max_tokens=null')
    params = chat.conversation.params
    assert (params.temperature, params.stop, params.max_tokens) == (0.5, ("x",), None)
    assert "temperature = 0.5  (set)" in said(chat)
    assert "min_p = 0.0" in said(chat)
    with pytest.raises(UnknownOption, match="did you mean 'temperature'"):
        chat.obey("/params temprature=1")
    with pytest.raises(BadValue, match="top_p must be above 0"):
        chat.obey("/params top_p=7")
    for value in ("high", "[" * 200_000):
        with pytest.raises(BadValue, match="top_p must be a number"):
            chat.obey(f"/params top_p={value}")
    assert chat.conversation.params == params


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        ('"Human: "', ("Human: ",)),
        ("'Human: '", ("Human: ",)),
        (r'"a\n\n"', ("a\n\n",)),
        (r"'a\n'", (r"a\n",)),
        ('["a b", "c"]', ("a b", "c")),
        ("two", ("two",)),
        ('a"b', ('a"b',)),
        ("[x", ("[x",)),
        ("5x", ("5x",)),
    ],
)
def test_values_with_spaces(chat: Chat, text: str, stop: tuple[str, ...]) -> None:
    chat.obey(f"/params min_p=0.5 stop={text}   top_p=1")
    params = chat.conversation.params
    assert (params.min_p, params.stop, params.top_p) == (0.5, stop, 1)


@pytest.mark.parametrize("text", ['"a b', "'a b", '"a"b', "'a'b", "'"])
def test_quotes_that_do_not_end(chat: Chat, text: str) -> None:
    with pytest.raises(BadInput, match=r"a value between quotes must end with one, as in /params stop=.a b"):
        chat.obey(f"/params stop={text}")
    assert chat.conversation.params == PARAMS


def test_stats_and_help(chat: Chat) -> None:
    chat.obey("hello")
    chat.obey("/stats")
    assert any("answers  1, 8 tokens" in text for text in said(chat))
    chat.obey("/help")
    for name in COMMANDS:
        assert any(text.startswith(f"/{name}") for text in said(chat))


def test_the_context_is_full(tiny: Path) -> None:
    screen = Recorder()
    with LLM(tiny, context=200, threads=1) as llm:
        chat = Chat(Conversation(llm, "tiny", SamplingParams(temperature=0, ignore_end=True)), screen)
        chat.obey("x" * 100)
        assert screen.said[-1].startswith("The context of 200 tokens is full, so the answer ends here.")
        with pytest.raises(PromptTooLong, match=r"but the context holds 200;.*Nothing was dropped; /undo or"):
            chat.obey("more")
        assert roles(chat) == "ua"


def test_save_and_load(chat: Chat, llm: LLM, tmp_path: Path) -> None:
    chat.obey("/system Be brief.")
    chat.obey("日本 🦙")
    chat.obey('/params temperature=0.25 logit_bias={"5":1.5}')
    path = tmp_path / "chat.json"
    chat.obey(f"/save {path}")
    chat.obey(f"/save {path}")  # a saved chat may be replaced
    assert json.loads(path.read_text())["params"] == {
        "temperature": 0.25,
        "max_tokens": 8,
        "logit_bias": {"5": 1.5},
    }
    other = Chat(Conversation(llm, "tiny", SamplingParams()), Recorder())
    other.obey(f"/load {path}")
    assert other.conversation.messages == chat.conversation.messages
    assert other.conversation.params == SamplingParams(
        temperature=0.25, top_p=0.9, max_tokens=8, logit_bias={5: 1.5}
    )
    path.write_text("my diary")
    with pytest.raises(BadFile, match="it is no JSON"):
        chat.obey(f"/save {path}")
    assert path.read_text() == "my diary"
    with pytest.raises(WorkFailed, match=r"chat\.json cannot be written: "):
        chat.obey(f"/save {path}/chat.json")


def test_text_that_is_no_unicode_is_saved_as_it_was_loaded(chat: Chat, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text('{"puna_chat": 1, "messages": [{"role": "user", "content": "\\ud800 日本"}]}')
    chat.obey(f"/load {first}")
    chat.obey(f"/save {second}")
    assert "日本" in second.read_text()
    assert json.loads(second.read_text())["messages"] == json.loads(first.read_text())["messages"]
    assert sorted(os.listdir(tmp_path)) == ["first.json", "second.json"]
    with pytest.raises(BadInput, match="must be Unicode"):
        chat.obey("go on")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000, "[]", "{}", '{"puna_chat": 2, "messages": []}', '{"puna_chat": 1}',
        '{"puna_chat": 1, "messages": [1]}',
        '{"puna_chat": 1, "messages": [{"role": "user"}]}',
        '{"puna_chat": 1, "messages": [{"role": "tool", "content": "x"}]}',
        '{"puna_chat": 1, "messages": [], "params": 5}',
        '{"puna_chat": 1, "messages": [], "params": {"hot": 5}}',
        '{"puna_chat": 1, "messages": [], "params": {"temperature": -5}}',
        '{"puna_chat": 1, "messages": [], "params": {"logit_bias": {"x": 1}}}',
    ],
)  # fmt: skip
def test_files_that_are_no_chats(chat: Chat, tmp_path: Path, text: str) -> None:
    path = tmp_path / "chat.json"
    path.write_text(text)
    with pytest.raises(BadFile, match=str(path)):
        chat.obey(f"/load {path}")
    assert chat.conversation.params == PARAMS


def test_the_loop_ends_and_drafts_come_back(llm: LLM) -> None:
    screen = Recorder(["hello", "/undo", "/quit", "never"])
    Chat(Conversation(llm, "tiny", PARAMS), screen).run()
    assert screen.drafts == ["", "", "hello"]
    assert screen.inputs == ["never"]


def test_twenty_turns_use_the_cache(llm: LLM) -> None:
    conversation = Conversation(llm, "tiny", PARAMS)
    for i in range(20):
        answer = conversation.ask(f"message {i}")
        result = conversation.keep(answer)
        assert (
            result.n_prompt - result.n_cached < 120
        )  # of 1,000 in the end: what is new, and part of a block
    assert len(conversation.messages) == 40


def test_a_session_goes_on_where_it_stopped(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "talk.session"
    options = ["--temperature", "0", "--max-tokens", "8"]
    said = ["Tell me about the other day, please.", "And the day before?", "Go on."]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(said)))
    assert main(["chat", str(tiny), *options]) == 0
    whole = capsys.readouterr().out
    parts = []
    for message in said:
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{message}\n/stats\n"))
        assert main(["chat", str(tiny), *options, "--session", str(file)]) == 0
        captured = capsys.readouterr()
        parts.append(captured.out)
    assert "".join(parts) == whole
    with LLM(tiny, threads=1) as llm:
        conversation = Conversation(llm, "tiny", PARAMS)
        conversation.restore(file)
        assert [m["content"] for m in conversation.messages if m["role"] == "user"] == said
        assert conversation.keep(conversation.ask("more")).n_cached >= 64
    file.write_bytes(file.read_bytes()[:-1])
    monkeypatch.setattr(sys, "stdin", io.StringIO("one"))
    assert main(["chat", str(tiny), *options, "--session", str(file)]) == 2
    assert "talk.session" in capsys.readouterr().err


def test_a_pipe(
    tiny: Path, llm: LLM, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\ntwo\\\nlines\n/stats\n"))
    assert main(["chat", str(tiny), "--temperature", "0", "--max-tokens", "8"]) == 0
    captured = capsys.readouterr()
    conversation = Conversation(llm, "tiny", PARAMS)
    texts = []
    for message in ("one", "two\nlines"):
        texts.append(conversation.keep(conversation.ask(message)).text + "\n")
    assert captured.out == "".join(texts)
    assert "answers  2" in captured.err
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n/bogus\ntwo\n"))
    assert main(["chat", str(tiny), "--temperature", "0", "--max-tokens", "8"]) == 2
    captured = capsys.readouterr()
    assert captured.out == texts[0]
    assert captured.err == "puna: there is no command /bogus; /help lists the commands\n"


READY = "\x1b[?2004h"  # the prompt takes pasted text


class Session:
    """A process on a terminal of its own."""

    def __init__(self, *arguments: str, parent: Sequence[str] = (), **env: str) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (30, 100))
        self.process = subprocess.Popen(
            [*parent, sys.executable, "-m", "puna", "chat", *arguments],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=_own_terminal,
            env={**os.environ, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", **env},
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def expect(self, text: str) -> str:
        """Read until `text` appears; returns all before it."""
        end = time.monotonic() + 30
        while text not in self.seen:
            assert time.monotonic() < end, f"no {text!r} in {self.seen!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def end(self) -> int:
        """Read what is left; the exit code."""
        end = time.monotonic() + 30
        while True:
            assert time.monotonic() < end, f"no end after {self.seen!r}"
            try:
                if select.select([self.master], [], [], 0.1)[0] and not os.read(self.master, 4096):
                    break
            except OSError:  # Linux says so at the end
                break
        os.close(self.master)
        return self.process.wait(30)


def _own_terminal() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # background jobs of a shell ignore it
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_session_on_a_terminal(tiny: Path, home: Path) -> None:
    with Session(str(tiny), "--threads", "1", "--ignore-end", "--temperature", "3") as session:
        session.expect("/help for help")  # the line may be folded: the path before it is of any length
        session.expect(READY)
        session.type("/params max_tokens=5\r")
        session.expect("max_tokens = 5  (set)")
        session.expect(READY)
        session.type("two\\\rlines\r")
        session.expect("5 tokens")
        session.expect(READY)
        session.type("\x03")  # at the prompt
        session.expect("Ctrl-D or /quit leaves")
        session.expect(READY)
        session.type("/params max_tokens=null\r")
        session.expect("max_tokens = null")
        session.expect(READY)
        session.type("go on\r")
        session.expect("…")
        time.sleep(0.2)
        session.type("\x03")  # in the answer
        session.expect("interrupted")
        session.expect(READY)
        session.type("/bogus\r")
        session.expect("there is no command /bogus")
        session.expect(READY)
        session.type("\x04")
        assert session.end() == 0
        history = home / "chat_history"
        assert "+two\n+lines" in history.read_text()
        assert stat.S_IMODE(history.stat().st_mode) == 0o600


# Ends with 130 when SIGINT reaches it, as make does, but waits for its child before.
LIKE_MAKE = """
import signal, subprocess, sys
seen = []
signal.signal(signal.SIGINT, lambda *_: seen.append(1))
code = subprocess.call(sys.argv[1:])
sys.exit(130 if seen else code)
"""


def test_ctrl_c_in_an_answer_is_for_the_chat_alone(tiny: Path) -> None:
    parent = (sys.executable, "-c", LIKE_MAKE)
    options = ("--threads", "1", "--ignore-end", "--temperature", "3")
    with Session(str(tiny), *options, parent=parent) as session:
        session.expect("/help for help")
        session.expect(READY)
        session.type("go on\r")
        session.expect("…")
        session.type("/stats\r")  # waits for the prompt
        time.sleep(0.2)
        session.type("\x03")
        session.expect("interrupted")
        session.expect("answers  1")
        session.expect(READY)
        session.type("\x04")
        assert session.end() == 0


def test_an_interrupt_while_loading(tiny: Path) -> None:
    """Ends the program; where loading was done by then, the prompt took it and says how to leave."""
    with Session(str(tiny)) as session:
        # not while the interpreter itself starts: what is not Puna's yet ends with status 1
        maps = Path(f"/proc/{session.process.pid}/maps")
        end = time.monotonic() + 10
        while maps.exists() and "numpy" not in maps.read_text() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.05)
        session.process.send_signal(signal.SIGINT)
        try:
            session.process.wait(5)
        except subprocess.TimeoutExpired:
            session.expect("Ctrl-D or /quit leaves")
            session.type("\x04")
            assert session.end() == 0
        else:
            assert session.end() in (130, -signal.SIGINT)  # the same to a shell


def test_a_dumb_terminal_gets_plain_text(tiny: Path) -> None:
    with Session(str(tiny), "--threads", "1", "--max-tokens", "3", TERM="dumb") as session:
        session.type("hello\n")
        time.sleep(0.2)
        session.type("\x04")
        assert session.end() == 0
