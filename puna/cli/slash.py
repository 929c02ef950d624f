"""The loop of a chat, and its commands."""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.cli.common import size
from puna.cli.conversation import Conversation, changed_params, params_of_json
from puna.cli.screen import Screen
from puna.cli.terminal import rate
from puna.core import BadInput, Completion, PunaError, closest

if TYPE_CHECKING:
    from puna.llm.answer import Timing

# "/undo" and "/system Be brief." are commands; "/etc/hosts is what?" and "//undo" are messages.
_COMMAND = re.compile(r"/(\w+)(?:\s+(.*))?", re.DOTALL)
_NAME = re.compile(r"([^\s=]+)=")  # of a parameter
_PYTHONS_WORDS = {"True": True, "False": False, "None": None}


class Chat:
    """A conversation on a screen."""

    def __init__(self, conversation: Conversation, screen: Screen) -> None:
        self.conversation = conversation
        self.screen = screen
        self.draft = ""  # for the next prompt
        self.is_over = False

    def run(self) -> None:
        """Read and answer until the end of the input, or the first error where the screen forgives none."""
        llm = self.conversation.llm
        self.screen.whisper(f"{self.conversation.model}, context of {llm.context:,} tokens. /help for help")
        while not self.is_over:
            text = self.screen.read(self.draft, len(self.conversation.attached))
            if text is None:
                return
            self.draft = ""
            try:
                self.obey(text)
            except PunaError as error:
                if not self.screen.forgives:
                    raise
                self.screen.say(str(error))

    def obey(self, text: str) -> None:
        """Run a command or answer a message."""
        match = _COMMAND.fullmatch(text)
        if match is None:
            self.answer(text[1:] if text.startswith("//") else text)
            return
        name, argument = match[1], (match[2] or "").strip()
        command = COMMANDS.get(name)
        if command is None:
            hint = closest(f"/{name}", [f"/{known}" for known in COMMANDS]) or "; /help lists the commands"
            raise BadInput(f"there is no command /{name}{hint}")
        if argument and not command.argument:
            raise BadInput(f"/{name} takes no argument, got {argument!r}; // begins a message with a slash")
        command.run(self, argument)

    def answer(self, text: str) -> None:
        """Ask, show the answer, and say how it went."""
        answer = self.conversation.ask(text)
        self.draft = text  # comes back if it is interrupted before there is an answer
        self.screen.show(answer)
        result = self.conversation.keep(answer)
        if result.text:
            self.draft = ""
        self._close(result, answer.timing)

    def _close(self, result: Completion, timing: Timing) -> None:
        """The line below an answer, and why it ended if not by itself."""
        context, used = self.conversation.llm.context, result.n_prompt + len(result.token_ids)
        parts = [
            rate(timing.n_tokens, timing.decode_tok_s),
            f"prompt {rate(timing.n_computed, timing.prompt_tok_s)}",
            f"context {used:,} of {context:,}",
        ]
        if result.finish_reason == "cancelled":
            parts.insert(0, "interrupted")
        self.screen.whisper(" · ".join(parts))
        if result.finish_reason == "length" and used >= context:
            self.screen.say(
                f"The context of {context:,} tokens is full, so the answer ends here. Nothing was dropped: "
                "/undo or /reset makes room, --context sets its size."
            )
        elif result.finish_reason == "length":
            self.screen.whisper("max_tokens is reached; /params max_tokens=null lifts it")


@dataclass(frozen=True, slots=True)
class Command:
    run: Callable[[Chat, str], None]
    argument: str  # as /help shows it; "" for none
    text: str


def _system(chat: Chat, text: str) -> None:
    talk = chat.conversation
    if text:
        talk.set_system(None if text == "-" else text)
    current = talk.system
    chat.screen.say("no system message" if current is None else f"system: {current}")


def _reset(chat: Chat, _: str) -> None:
    chat.conversation.reset()
    chat.screen.say("a new conversation")


def _retry(chat: Chat, _: str) -> None:
    talk = chat.conversation
    before, attached = [*talk.messages], [*talk.attached]
    talk.attached.clear()  # they are for the next message
    try:
        chat.answer(talk.undo())
    finally:
        talk.attached[:] = attached
        if len(talk.messages) < len(before):  # there is no other answer: keep the one there was
            talk.messages[:] = before
            chat.draft = ""


def _undo(chat: Chat, _: str) -> None:
    chat.draft = chat.conversation.undo()
    chat.screen.say(f"taken back; {len(chat.conversation.messages)} messages are left")


def _image(chat: Chat, name: str) -> None:
    """Add a picture to the next message; - takes all of them back."""
    talk = chat.conversation
    if name == "-":
        talk.attached.clear()
    elif name:
        quote = (
            name[0] if name[0] in "'\"" and name.endswith(name[0]) else ""
        )  # of a file dropped on a terminal
        image = talk.attach(_path(name.removeprefix(quote).removesuffix(quote)))
        chat.screen.whisper(f"{image.columns} by {image.rows} tiles")
    n = len(talk.attached)
    chat.screen.say(f"{n or 'no'} image{'s' * (n != 1)} with the next message")


def _save(chat: Chat, name: str) -> None:
    chat.conversation.save(_path(name))
    chat.screen.say(f"saved {len(chat.conversation.messages)} messages")


def _load(chat: Chat, name: str) -> None:
    chat.conversation.load(_path(name))
    chat.screen.say(f"loaded {len(chat.conversation.messages)} messages")


def _path(name: str) -> Path:
    if not name:
        raise BadInput("name a file, as in /save chat.json")
    return Path(expanduser(name))


def _params(chat: Chat, text: str) -> None:
    """Show the parameters, or set those of `name=value …`."""
    talk = chat.conversation
    if text:
        talk.params = params_of_json(_assignments(text), talk.params)
    changed = changed_params(talk.params)
    for field in fields(talk.params):
        mark = "  (set)" if field.name in changed else ""
        chat.screen.say(f"{field.name} = {json.dumps(getattr(talk.params, field.name))}{mark}")


def _assignments(text: str) -> dict[str, Any]:
    """The values of `name=value …`: JSON, which may have spaces, a text between single quotes, or a word."""
    values: dict[str, Any] = {}
    at = 0
    while at < len(text):
        name = _NAME.match(text, at)
        if name is None:
            wrong = text[at:].split()[0]
            raise BadInput(f"parameters are set as in /params temperature=0.2 top_p=1, got {wrong!r}")
        values[name[1]], at = _value(text, name.end())
        at += len(text[at:]) - len(text[at:].lstrip())
    return values


def _value(text: str, at: int) -> tuple[Any, int]:
    """The value that begins there, and where it ends."""
    first = text[at : at + 1]
    end = text.find("'", at + 1) + 1
    value: Any = text[at + 1 : end - 1]
    if first != "'":
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError):  # the last of thousands of brackets
            end = 0
    if end and (end == len(text) or text[end].isspace()):
        return value, end
    if first and first in "'\"":
        raise BadInput(
            f'a value between quotes must end with one, as in /params stop="a b", got {text[at:]!r:.80}'
        )
    end = next((i for i in range(at, len(text)) if text[i].isspace()), len(text))
    return _PYTHONS_WORDS.get(text[at:end], text[at:end]), end


def _stats(chat: Chat, _: str) -> None:
    talk, total = chat.conversation, chat.conversation.totals
    computed = total.prompt_tokens - total.cached_tokens
    # kilobytes, but bytes on macOS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    for line in (
        f"model    {talk.model}, {talk.llm.path.name}",
        f"context  {talk.n_context:,} of {talk.llm.context:,} tokens, {len(talk.messages)} messages",
        f"prompts  {total.prompt_tokens:,} tokens, {total.cached_tokens:,} of them from the cache; the other "
        f"{rate(computed, computed / total.prompt_s if total.prompt_s else 0)}",
        f"answers  {total.answers:,}, "
        f"{rate(total.answer_tokens, total.answer_tokens / total.decode_s if total.decode_s else 0)}",
        f"machine  {talk.llm.threads} threads, {size(peak)} of memory at most, loaded in "
        f"{talk.llm.load_seconds:.2f} s",
    ):
        chat.screen.say(line)


def _help(chat: Chat, _: str) -> None:
    width = max(len(f"/{name} {command.argument}") for name, command in COMMANDS.items())
    for name, command in COMMANDS.items():
        chat.screen.say(f"{f'/{name} {command.argument}':<{width}}  {command.text}")
    chat.screen.say("")
    chat.screen.say(
        "Enter sends; Alt-Enter, or Enter after a backslash, begins a new line. Ctrl-X Ctrl-E opens"
    )
    chat.screen.say("an editor. Ctrl-C ends an answer, Ctrl-D leaves. // begins a message with a slash.")


def _quit(chat: Chat, _: str) -> None:
    chat.is_over = True


COMMANDS = {
    "system": Command(_system, "[TEXT]", "show or set the system message; - removes it"),
    "reset": Command(_reset, "", "begin a new conversation"),
    "retry": Command(_retry, "", "another answer to the last message"),
    "undo": Command(_undo, "", "take the last message back, to edit it"),
    "image": Command(_image, "[FILE]", "show a picture with the next message; - takes it back"),
    "save": Command(_save, "FILE", "write messages and parameters to a JSON file"),
    "load": Command(_load, "FILE", "go on with a saved chat"),
    "params": Command(_params, "[NAME=VALUE ...]", "show or set sampling parameters"),
    "stats": Command(_stats, "", "tokens, speeds, memory"),
    "help": Command(_help, "", "this list"),
    "quit": Command(_quit, "", "leave, as Ctrl-D does"),
}
