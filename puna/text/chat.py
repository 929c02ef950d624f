"""Messages to the ids of a prompt, where nothing that a message says becomes a control token.

A template mixes its control tokens with the text of messages into one string. Encoding that string as it is
would turn "<|im_end|>" in a message into the end of the message. So messages are rendered with a mark: a
random number after every character that could begin a control token, and around each text. Control tokens
that are whole in the result are the template's; then the marks are removed and what lies between the tokens
is encoded as plain text. For messages without such names, the ids are those of the rendered string, as in
transformers.

A template that looks into texts (does it start with "<think>"?) may render marked ones differently. Then
fewer marks are made: not around texts, or at the least only in the names of control tokens. The last is
enough unless the template itself makes a name by deleting something from a text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import lru_cache
from secrets import randbits
from typing import Any

from puna.core import BadInput
from puna.text.template import ChatTemplate
from puna.text.tokenizer import Tokenizer

Message = Mapping[str, Any]

_ROLE = re.compile(r"[\w.-]+")
_TEXT_KEYS = ("content", "text")

_Guard = Callable[[str, str], str]  # a string, and the key it is found under
_compiled = lru_cache(maxsize=8)(ChatTemplate)


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    date: date | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of the prompt that the file's chat template makes of `messages` ({"role", "content", …}).

    The other arguments are those of ChatTemplate.render. The token that begins a text comes once, whether the
    template writes it or the file asks for it. Raises BadInput for a file without a template, for messages
    that are not plain data or have a role that is no word, and where the template refuses them.
    """
    _check_roles(messages)
    mark = f"{randbits(128):039d}"  # digits: they survive upper(), JSON and HTML escapes

    def render(guard: _Guard) -> str:
        return render_chat(
            tokenizer,
            _guarded(messages, guard),
            tools=_guarded(tools, guard),
            add_generation_prompt=add_generation_prompt,
            date=date,
            variables=_guarded(variables, guard),
        )

    names = tokenizer.control_tokens
    guards: list[_Guard] = [
        lambda text, key: _mark_ends(names.mark_beginnings(text, mark), key, mark),
        lambda text, key: names.mark_beginnings(text, mark),
        lambda text, key: names.mark_names(text, mark),
    ]
    wanted = render(guards[-1]).replace(mark, "")
    rendered = next(made for made in map(render, guards) if made.replace(mark, "") == wanted)
    parts: list[str | int] = []
    for part in tokenizer.split(rendered, special=True):
        parts += [part] if isinstance(part, int) else tokenizer.split(part.replace(mark, ""), special=False)
    return tokenizer.encode_parts(parts)


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    date: date | None = None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The prompt as text, to show. To encode it would be to trust the messages: that is what encode_chat is
    for.
    """
    if tokenizer.chat_template is None:
        raise BadInput(
            "the file must carry a chat template to chat with, it has none; a base model continues text, use "
            "puna run --raw"
        )
    return _compiled(tokenizer.chat_template).render(
        messages,
        tools=tools,
        add_generation_prompt=add_generation_prompt,
        date=date,
        variables={
            "bos_token": _name(tokenizer, tokenizer.bos_id),
            "eos_token": _name(tokenizer, tokenizer.eos_id),
            **(variables or {}),
        },
    )


def _name(tokenizer: Tokenizer, token_id: int | None) -> str:
    return "" if token_id is None else tokenizer.token_bytes(token_id).decode("utf-8", "replace")


def _check_roles(messages: Sequence[Message]) -> None:
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        # Templates build control tokens out of roles, so these have to be harmless.
        if not isinstance(role, str) or not _ROLE.fullmatch(role):
            raise BadInput(
                f'message {i} must be {{"role": …, "content": …}} with a word for role, found {message!r:.80}'
            )


def _guarded(value: Any, guard: _Guard, key: str = "") -> Any:
    """A copy of plain data with strings guarded, except roles; `key` is where `value` was found."""
    if isinstance(value, str):
        return value if key == "role" else guard(value, key)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {_guarded(k, guard): _guarded(v, guard, str(k)) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_guarded(item, guard, key) for item in value]
    raise BadInput(f"messages and tools must be plain data as JSON has it, found a {type(value).__name__}")


def _mark_ends(text: str, key: str, mark: str) -> str:
    """Marks around a text, inside its outer spaces, which templates may strip."""
    core = text.strip()
    return text.replace(core, mark + core + mark) if core and key in _TEXT_KEYS else text
