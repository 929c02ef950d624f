"""The two faces of a chat: a terminal with editing, history and Markdown, and plain text in a pipe."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from puna import env
from puna.cli.common import not_text
from puna.cli.keyboard import quiet_keyboard
from puna.cli.terminal import harmless, write
from puna.core import BadInput

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from rich.console import Console

    from puna.llm.answer import Answer

PROMPT = "> "


class Screen(Protocol):
    forgives: bool  # whether the chat goes on after an error

    def read(self, draft: str = "", n_images: int = 0) -> str | None:
        """The next message or command, None at the end; `draft` is put there to be edited. `n_images` go with
        the message.
        """

    def show(self, answer: Answer) -> None:
        """Show an answer as it comes, to its end or until it is interrupted."""

    def say(self, text: str) -> None:
        """Something that is no answer."""

    def whisper(self, text: str) -> None:
        """Something that a script need not know."""


class Pipe:
    """Each line of stdin is a message or a command, and goes on after a backslash; answers go to stdout."""

    forgives = False

    def read(self, draft: str = "", n_images: int = 0) -> str | None:
        try:
            return self._read()
        except UnicodeDecodeError as error:
            raise BadInput(f"the message on stdin {not_text(error)}") from None

    def _read(self) -> str | None:
        lines: list[str] = []
        for line in sys.stdin:
            lines.append(line.rstrip("\n"))
            if lines[-1].endswith("\\"):
                lines[-1] = lines[-1][:-1]
            elif text := "\n".join(lines).strip():
                return text
            else:
                lines.clear()
        return "\n".join(lines).strip() or None

    def show(self, answer: Answer) -> None:
        for text in answer:
            write(text)
        write("\n")

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def whisper(self, text: str) -> None:
        pass


class Terminal:
    """`history` is the file that messages are remembered in; `words` are completed by the Tab key."""

    forgives = True

    def __init__(self, history: Path, words: list[str]) -> None:
        from rich.console import Console

        from puna.cli.markdown import Paper

        self._console: Console = Console(no_color=env.no_color(), highlight=False)
        self._paper = Paper(self._console)
        self._session = _session(history, words)

    def read(self, draft: str = "", n_images: int = 0) -> str | None:
        carried = f"[{n_images} image{'s' * (n_images > 1)}] " if n_images else ""
        while True:
            try:
                text: str = self._session.prompt(carried + PROMPT, default=draft)
            except KeyboardInterrupt:
                self.whisper("Ctrl-D or /quit leaves")
            except EOFError:
                return None
            else:
                if text.strip():
                    return text.strip()
            draft = ""

    def show(self, answer: Answer) -> None:
        from puna.cli.markdown import MarkdownView

        write("\n")
        view = MarkdownView(self._paper, _to_terminal)
        with _interruptible(answer), quiet_keyboard(self._session.input):
            view.wait()
            try:
                for text in answer:
                    view.add(text)
            finally:
                view.finish()
        write("\n")

    def say(self, text: str) -> None:
        self._console.print(harmless(text), markup=False)

    def whisper(self, text: str) -> None:
        self._console.print(harmless(text), markup=False, style="dim")


def _to_terminal(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _session(history: Path, words: list[str]) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.output import ColorDepth

    return PromptSession(
        PROMPT,
        multiline=True,
        prompt_continuation="  ",
        key_bindings=_keys(),
        history=_history(history),
        auto_suggest=AutoSuggestFromHistory(),
        completer=WordCompleter(words, sentence=True),
        complete_while_typing=False,
        enable_open_in_editor=True,
        enable_suspend=True,
        color_depth=ColorDepth.DEPTH_1_BIT if env.no_color() else None,
    )


def _history(path: Path) -> History:
    """Messages of earlier sessions, readable by their writer only; where that cannot be, of this one."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


def _keys() -> KeyBindings:
    """Enter sends, and begins a new line after a backslash; so does Alt-Enter. Pasted lines stay together."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


@contextmanager
def _interruptible(answer: Answer) -> Iterator[None]:
    """Let Ctrl-C end the answer, and a second one whatever hangs.

    The request is cancelled from the signal's handler: an exception in the middle of painting would leave
    half a line, and half of the state behind it.
    """
    previous = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: object) -> None:
        answer.close()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
