"""The state of a chat, whatever shows it: messages, sampling parameters, and files that hold both.

A saved chat is one JSON object:

    {"puna_chat": 1, "model": "smollm2",
     "messages": [{"role": "system" | "user" | "assistant", "content": "..."}, ...],
     "params": {"temperature": 0.6, ...}}     fields of SamplingParams that differ from the defaults

Content of a message with images is a list in the form of OpenAI's API: the files themselves as data URLs,
then the text. So a saved chat needs no other file, and a foreign one opens none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.core import (
    BadFile,
    BadInput,
    BadValue,
    Completion,
    Image,
    PromptTooLong,
    SamplingParams,
    WorkFailed,
)
from puna.llm import DEFAULT_PARAMS, sampling_params
from puna.weights.disk import write_atomically

if TYPE_CHECKING:
    from puna.llm import LLM
    from puna.llm.answer import Answer, Timing

_VERSION = 1
_ROLES = ("system", "user", "assistant")


@dataclass(slots=True)
class Totals:
    """Of all answers since the program started."""

    answers: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    prompt_s: float = 0.0
    decode_s: float = 0.0

    def add(self, result: Completion, timing: Timing) -> None:
        self.answers += 1
        self.prompt_tokens += result.n_prompt
        self.cached_tokens += result.n_cached
        self.answer_tokens += len(result.token_ids)
        self.prompt_s += timing.prompt_s
        self.decode_s += timing.decode_s


class Conversation:
    def __init__(self, llm: LLM, model: str, params: SamplingParams, system: str | None = None) -> None:
        self.llm = llm
        self.model = model
        self.params = params
        self.messages: list[dict[str, Any]] = []
        self.attached: list[str] = []  # images that go with the next message, as data URLs
        self._prepared: dict[str, Image] = {}  # data URL -> what the model sees
        self._n_tokens: dict[int, int] = {}  # messages but for system's -> tokens of the context they took
        self.totals = Totals()
        self._asked: str | list[dict[str, Any]] | None = None  # a message whose answer is being made
        self.set_system(system)

    @property
    def system(self) -> str | None:
        first = self.messages[0] if self.messages else None
        return _text(first["content"]) if first and first["role"] == "system" else None

    @property
    def n_context(self) -> int:
        """Tokens of the context in use after the last answer; 0 where that was not seen."""
        return self._n_tokens.get(self._n_said, 0)

    @property
    def _n_said(self) -> int:
        return len(self.messages) - (self.system is not None)

    def set_system(self, text: str | None) -> None:
        """Set the system message from now on, or remove it."""
        if self.system is not None:
            del self.messages[0]
        if text is not None:
            self.messages.insert(0, {"role": "system", "content": text})

    def attach(self, path: Path) -> Image:
        """Let the image in a file go with the next message. Raises what LLM.image() raises."""
        from puna.images.decode import read_file, to_data_url

        raw = read_file(path)
        image = self.llm.image(raw)
        url = to_data_url(raw)
        self._prepared[url] = image
        self.attached.append(url)
        return image

    def ask(self, text: str) -> Answer:
        """Begin to answer a message; read the answer, then call `keep`. A refused message changes nothing."""
        images = [{"type": "image_url", "image_url": {"url": url}} for url in self.attached]
        content: str | list[dict[str, Any]] = text
        if images:
            content = [*images, {"type": "text", "text": text}]
        messages = [*self.messages, {"role": "user", "content": content}]
        try:
            answer = self.llm.stream([*map(self._seen, messages)], self.params)
        except PromptTooLong as error:
            raise PromptTooLong(f"{error}. Nothing was dropped; /undo or /reset makes room") from None
        self._asked = content
        return answer

    def _seen(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message with the images that were prepared in the place of their files."""
        if isinstance(message["content"], str):
            return message
        prepared = [{"type": "image", "image": self._prepared[url]} for url in _urls(message["content"])]
        return {**message, "content": [*prepared, {"type": "text", "text": _text(message["content"])}]}

    def keep(self, answer: Answer) -> Completion:
        """Add message and answer to the conversation; neither if there is no text."""
        result = answer.result()
        if result.text:
            assert self._asked is not None
            self.messages.append({"role": "user", "content": self._asked})
            self.messages.append({"role": "assistant", "content": result.text})
            self.attached.clear()
            self._n_tokens[self._n_said] = result.n_prompt + len(result.token_ids)
        self.totals.add(result, answer.timing)
        self._asked = None
        return result

    def undo(self) -> str:
        """Take back the last message of the user and all after it; returns what it said, and its images go
        with the next one.
        """
        last = next((i for i, m in reversed([*enumerate(self.messages)]) if m["role"] == "user"), None)
        if last is None:
            raise BadInput("there is no message to take back yet")
        content = self.messages[last]["content"]
        del self.messages[last:]
        self.attached[:0] = _urls(content)
        return _text(content)

    def reset(self) -> None:
        """Forget all messages but the system message."""
        system = self.system
        self.messages.clear()
        self.attached.clear()
        self._prepared.clear()
        self._n_tokens.clear()
        self.set_system(system)

    def save(self, path: Path) -> None:
        """Write the chat to a file; another chat that is there is replaced, anything else is not."""
        if path.exists():
            _read(path)
        chat = {
            "puna_chat": _VERSION,
            "model": self.model,
            "messages": self.messages,
            "params": changed_params(self.params),
        }
        text = json.dumps(chat, ensure_ascii=False, indent=1) + "\n"
        # half a surrogate pair has no UTF-8, but JSON has the same escape for it as Python
        text = text.encode(errors="backslashreplace").decode()
        try:
            write_atomically(path, text)
        except OSError as error:
            raise WorkFailed(f"{path} cannot be written: {error.strerror}; choose another file") from None

    def load(self, path: Path) -> None:
        """Go on with a saved chat: its messages and parameters, on the model that is running."""
        chat = _read(path)
        try:
            params = params_of_json(chat.get("params", {}))
            prepared = self._prepare(chat["messages"])
        except BadInput as error:
            raise BadFile(f"{path}: {error}") from None
        self.params = params
        self.messages = chat["messages"]
        self.attached.clear()
        self._prepared = prepared
        self._n_tokens.clear()

    def keep_in(self, path: Path) -> None:
        """Write what was said and computed to a file, for `restore`; nothing if nothing was said."""
        if self._n_said:
            self.llm.save_session(path, self.messages)

    def restore(self, path: Path) -> None:
        """Go on where `keep_in` stopped: what was computed then need not be computed again."""
        session = self.llm.load_session(path)
        messages = [dict(message) for message in session.messages]
        if not messages or not _are_messages({"messages": messages}):
            raise BadFile(f"{path} holds no conversation, only a prompt; choose another file")
        system, self.messages = self.system, messages
        if system is not None:
            self.set_system(system)
        self._n_tokens[self._n_said] = len(session.tokens)

    def _prepare(self, messages: list[dict[str, Any]]) -> dict[str, Image]:
        urls = [url for message in messages for url in _urls(message["content"])]
        if not urls:
            return {}
        from puna.images.decode import from_data_url

        return {url: self.llm.image(from_data_url(url)) for url in urls}


def _text(content: str | list[dict[str, Any]]) -> str:
    """What a message says."""
    return content if isinstance(content, str) else str(content[-1]["text"])


def _urls(content: str | list[dict[str, Any]]) -> list[str]:
    """The images of a message."""
    return [] if isinstance(content, str) else [part["image_url"]["url"] for part in content[:-1]]


def changed_params(params: SamplingParams) -> dict[str, Any]:
    """The fields that differ from the defaults."""
    values = {field.name: getattr(params, field.name) for field in fields(params)}
    return {name: value for name, value in values.items() if value != getattr(DEFAULT_PARAMS, name)}


def params_of_json(values: dict[str, Any], base: SamplingParams = DEFAULT_PARAMS) -> SamplingParams:
    """`base` with values as JSON has them: the keys of logit_bias are strings there, and token ids here."""
    bias = values.get("logit_bias")
    if isinstance(bias, dict):
        if not all(map(str.isdecimal, bias)):
            raise BadValue(f"logit_bias must have token ids for keys, got {', '.join(bias):.80}")
        values = {**values, "logit_bias": {int(token): value for token, value in bias.items()}}
    return sampling_params(values, base)


def _read(path: Path) -> dict[str, Any]:
    """The object in a file that must be a saved chat."""
    try:
        chat = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last of thousands of brackets
        reason = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise BadFile(f"{path} cannot be read as a saved chat: {reason}; choose another file") from None
    if not isinstance(chat, dict) or chat.get("puna_chat") != _VERSION or not _are_messages(chat):
        raise BadFile(f"{path} is not a saved chat of version {_VERSION}; choose another file")
    return chat


def _are_messages(chat: dict[str, Any]) -> bool:
    messages = chat.get("messages")
    return (
        isinstance(messages, list)
        and isinstance(chat.get("params", {}), dict)
        and all(
            isinstance(message, dict)
            and message.keys() == {"role", "content"}
            and message["role"] in _ROLES
            and (isinstance(message["content"], str) or _has_images(message))
            for message in messages
        )
    )


def _has_images(message: dict[str, Any]) -> bool:
    """Whether the content is images and then a text, as `ask` writes it."""
    content = message["content"]
    if message["role"] != "user" or not isinstance(content, list) or len(content) < 2:
        return False
    *images, text = content
    return (
        isinstance(text, dict)
        and text == {"type": "text", "text": text.get("text")}
        and isinstance(text["text"], str)
        and all(
            isinstance(part, dict)
            and part.keys() == {"type", "image_url"}
            and part["type"] == "image_url"
            and isinstance(part["image_url"], dict)
            and isinstance(part["image_url"].get("url"), str)
            for part in images
        )
    )
