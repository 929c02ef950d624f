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

An answer that was begun and is to go on is found in the rendered prompt by another random number behind it:
what the template writes from there on is cut off.

A file without a template, or a caller who names a format, gets the prompt that formats/ builds from ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    continue_final_message: bool = False,
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

    With `continue_final_message` the last message is an answer that was begun, and the prompt ends with its
    text, as in transformers; white space at its end is kept.

    Raises BadInput for a file that has neither template nor known control tokens, for messages that are not
    plain data or have a role that is no word, for a last message that cannot go on, and where the template or
    the format refuses them.
    """
    if continue_final_message:
        check_final(messages)
        add_generation_prompt = False
    builtin_tools, tools = _names_apart(tools)
    if chat_format is None and tokenizer.chat_template is not None:
        _check_tools(tokenizer.chat_template, tools or (), builtin_tools)
        if builtin_tools:
            variables = {**(variables or {}), "builtin_tools": builtin_tools}
        options = _Options(tools, add_generation_prompt, date, variables, continue_final_message)
        return _encode_with_images(tokenizer, messages, options, patches)
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
        continue_final_message=continue_final_message,
    )


def _check_tools(template: str, tools: Tools, builtin: Sequence[str]) -> None:
    if tools and "tools" not in template:
        raise BadInput(
            f"this model's chat template has no place for tools, found {len(tools)}: the model would not see "
            "them; take them out, or use a model that was made for tools"
        )
    if builtin and "builtin_tools" not in template:
        raise BadInput(
            f"this model's chat template knows no builtin tools, found {builtin[0]!r:.80}; define it among "
            "the tools"
        )


def check_final(messages: Sequence[Message]) -> None:
    """Raise BadInput unless the last message is an answer that can go on: text of the assistant, no calls."""
    last = messages[-1] if messages else None
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        role = last.get("role") if isinstance(last, Mapping) else None
        raise BadInput(
            f"to go on with an answer the last message must be the assistant's, found {role!r:.80}"
        )
    if last.get("tool_calls"):
        raise BadInput("an answer that calls tools has ended and cannot go on; add the tools' results")
    content = last.get("content")
    parts = content if isinstance(content, list | tuple) else [{"type": "text", "text": content}]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if not texts or not all(isinstance(text, str) for text in texts) or not str(texts[-1]).strip():
        raise BadInput(f"an answer that goes on must have a text that it begins with, found {content!r:.80}")


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


@dataclass(frozen=True, slots=True)
class _Options:
    """What a template gets beside the messages."""

    tools: Sequence[Mapping[str, Any]] | None
    add_generation_prompt: bool
    date: date | None
    variables: Mapping[str, Any] | None
    continue_final_message: bool


def _encode_with_images(
    tokenizer: Tokenizer, messages: Sequence[Message], options: _Options, patches: int | None
) -> list[int]:
    """By the file's template, which writes one token for each picture."""
    if not any(_is_image(part) for message in messages for part in _parts(message)):
        return _encode_by_template(tokenizer, messages, options)
    from puna.text.formats.images import PATCHES, expand_images

    plain, grids = _without_grids(messages)
    ids = _encode_by_template(tokenizer, plain, options)
    return expand_images(tokenizer, ids, grids, patches=patches or PATCHES)


def _encode_by_template(tokenizer: Tokenizer, messages: Sequence[Message], options: _Options) -> list[int]:
    if options.continue_final_message:
        return _encode_open(tokenizer, messages, options)
    mark = _random_digits()
    return _encode_rendered(tokenizer, _render_marked(tokenizer, messages, options, mark), mark)


def _encode_open(tokenizer: Tokenizer, messages: Sequence[Message], options: _Options) -> list[int]:
    """The same up to the end of the last message's text."""
    mark, end = _random_digits(), _random_digits()
    rendered = _render_marked(tokenizer, _with_end(messages, end), options, mark)
    before, found, _ = rendered.partition(end)
    whole = _render_marked(tokenizer, messages, options, mark).replace(mark, "")
    if not found or rendered.replace(mark, "").replace(end, "") != whole:
        raise BadInput(
            "this model's chat template does not write the last message as it is, so the answer cannot go on "
            "from there; end with a message of the user"
        )
    text = _final_text(messages)
    return _encode_rendered(tokenizer, before + text[len(text.rstrip()) :], mark)


def _final_text(messages: Sequence[Message]) -> str:
    content = messages[-1]["content"]
    return str(content if isinstance(content, str) else content[-1]["text"])


def _with_end(messages: Sequence[Message], end: str) -> list[Message]:
    """The messages with `end` behind the text of the last, which check_final has passed."""
    text = _final_text(messages)
    core = text.rstrip()
    marked: Any = core + end + text[len(core) :]
    content = messages[-1]["content"]
    if not isinstance(content, str):
        marked = [*content[:-1], {**content[-1], "text": marked}]
    return [*messages[:-1], {**messages[-1], "content": marked}]


def _random_digits() -> str:
    """They survive upper(), JSON and HTML escapes."""
    return f"{randbits(128):039d}"


def _render_marked(tokenizer: Tokenizer, messages: Sequence[Message], options: _Options, mark: str) -> str:
    """The prompt as text, with as many marks as the template lets pass."""
    _check_roles(messages)

    def render(guard: _Guard) -> str:
        return render_chat(
            tokenizer,
            _guarded(messages, guard),
            tools=_guarded(options.tools, guard),
            add_generation_prompt=options.add_generation_prompt,
            date=options.date,
            variables=_guarded(options.variables, guard),
        )

    names = tokenizer.control_tokens
    guards: list[_Guard] = [
        lambda text, key: _mark_ends(names.mark_beginnings(text, mark), key, mark),
        lambda text, key: names.mark_beginnings(text, mark),
        lambda text, key: names.mark_names(text, mark),
    ]
    wanted = render(guards[-1]).replace(mark, "")
    return next(made for made in map(render, guards) if made.replace(mark, "") == wanted)


def _encode_rendered(tokenizer: Tokenizer, rendered: str, mark: str) -> list[int]:
    """The token that begins a text comes once, whether the template writes it or the file asks for it."""
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
