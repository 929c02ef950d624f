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

A file without a template, or a caller who names a format, gets the prompt that formats/ builds from ids.
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

Tools = Sequence[Mapping[str, Any] | str]  # definitions, and names of tools that the model knows

_ROLE = re.compile(r"[\w.-]+")
_TEXT_KEYS = ("content", "text")
_IMAGE_TYPES = ("image", "image_url")

_Guard = Callable[[str, str], str]  # a string, and the key it is found under
_compiled = lru_cache(maxsize=8)(ChatTemplate)


def _names_apart(tools: Tools | None) -> tuple[list[str], list[Mapping[str, Any]] | None]:
    """The names of tools without definition, and the definitions: None where nobody gave any."""
    named = [tool for tool in tools or () if isinstance(tool, str)]
    defined = [tool for tool in tools or () if not isinstance(tool, str)]
    return named, None if tools is None or (named and not defined) else defined


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Tools | None = None,
    add_generation_prompt: bool = True,
    date: date | None = None,
    variables: Mapping[str, Any] | None = None,
    chat_format: str | None = None,
    patches: int | None = None,
) -> list[int]:
    """Token ids of the prompt for `messages` ({"role", "content", …}), up to where the answer begins.

    They are those of the file's own chat template, or with `chat_format`, or where there is no template, of
    the builder of that name or the one that the vocabulary was made for (formats.FORMATS). A name among the
    `tools` is of one that the model knows without definition, such as 3.1's brave_search; a template gets
    those as its variable builtin_tools. The other arguments are those of ChatTemplate.render; `variables` are
    for templates only.

    Parts {"type": "image"} of a message's content, for Llama 4 with "tiles": (across, down), become the
    tokens of that generation, for which templates write one <|image|> each; `patches` are those of a tile.
    formats.image_positions says where they stand. What such a part has beside is not looked at.

    Raises BadInput for a file that has neither template nor known control tokens, for messages that are not
    plain data or have a role that is no word, and where the template or the format refuses them.
    """
    builtin_tools, tools = _names_apart(tools)
    if chat_format is None and tokenizer.chat_template is not None:
        if builtin_tools:
            if "builtin_tools" not in tokenizer.chat_template:
                raise BadInput(
                    f"this model's chat template knows no builtin tools, found {builtin_tools[0]!r:.80}; "
                    "define it among the tools"
                )
            variables = {**(variables or {}), "builtin_tools": builtin_tools}
        if not any(_is_image(part) for message in messages for part in _parts(message)):
            return _encode_by_template(tokenizer, messages, tools, add_generation_prompt, date, variables)
        from puna.text.formats.images import PATCHES, expand_images

        plain, grids = _without_grids(messages)
        ids = _encode_by_template(tokenizer, plain, tools, add_generation_prompt, date, variables)
        return expand_images(tokenizer, ids, grids, patches=patches or PATCHES)
    if variables:
        raise BadInput(
            f"variables are for a file's chat template, found {', '.join(variables)} for a prompt without "
            "one; take them out"
        )
    from puna.text.formats import build_prompt  # most files have a template
    from puna.text.formats.images import PATCHES

    return build_prompt(
        tokenizer,
        messages,
        chat_format=chat_format or _guessed(tokenizer),
        tools=tools,
        builtin_tools=builtin_tools,
        add_generation_prompt=add_generation_prompt,
        date=date,
        patches=patches or PATCHES,
    )


def encode_further(
    tokenizer: Tokenizer,
    done: Sequence[int],
    messages: Sequence[Message],
    *,
    tools: Tools | None = None,
    chat_format: str | None = None,
) -> list[int]:
    """`done`, the ids of a conversation that ends with an answer, and those of `messages` that go on from it.

    What a prompt says once, at its beginning, is not said again: the new ids are what the messages add to a
    conversation that has an answer already. An answer that was cut short is ended first. Raises what
    encode_chat does, and BadInput for prompts in which no token ends an answer.
    """
    before = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    options: dict[str, Any] = {"tools": tools, "chat_format": chat_format}
    head = encode_chat(tokenizer, before, add_generation_prompt=False, **options)
    whole = encode_chat(tokenizer, [*before, *messages], **options)
    ends = [i for i, token in enumerate(head) if token in tokenizer.end_ids]
    if not done or not ends or whole[: ends[-1] + 1] != head[: ends[-1] + 1]:
        raise BadInput(
            "prompts of this model cannot go on from token ids, since no token ends an answer in them; give "
            "the whole conversation as messages"
        )
    return [*done, *whole[ends[-1] + (done[-1] in tokenizer.end_ids) :]]


def _parts(message: Any) -> Sequence[Any]:
    """The parts of a message's content; none of a text."""
    content = message.get("content") if isinstance(message, Mapping) else None
    return content if isinstance(content, list | tuple) else ()


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in _IMAGE_TYPES


def _without_grids(messages: Sequence[Message]) -> tuple[list[Message], list[tuple[int, int]]]:
    """The messages as templates know them, and the tiles of each picture in turn."""
    from puna.text.formats.base import image_of

    plain, grids = [*messages], []
    for i, message in enumerate(messages):
        if parts := _parts(message):
            grids += [image_of(i, part).tiles for part in parts if _is_image(part)]
            content = [{"type": "image"} if _is_image(part) else part for part in parts]
            plain[i] = {**message, "content": content}
    return plain, grids


def _guessed(tokenizer: Tokenizer) -> str:
    from puna.text.formats import FORMATS, guess

    found = guess(tokenizer)
    if found is None:
        raise BadInput(
            "to chat, a file must carry a chat template or the control tokens of a known format, it has "
            f"neither; name its format ({', '.join(FORMATS)}), or for a base model, which continues text, "
            "use puna run --raw"
        )
    return found


def _encode_by_template(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
    date: date | None,
    variables: Mapping[str, Any] | None,
) -> list[int]:
    """The token that begins a text comes once, whether the template writes it or the file asks for it."""
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
