"""Prompts built from token ids, one builder for each generation of the family.

Control tokens are looked up by name and put in as ids; what messages say is encoded as plain text, each piece
by itself as Meta's own code does. So there is no string in which a message could pretend to be a token. What
a model file's own template makes of the same messages is chat.py's business; where the two differ,
`puna show --prompt` shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any, Literal

from puna.core import BadInput, closest
from puna.text.formats import headers, inst
from puna.text.formats.base import Builtins, Options, Parts, ToolStyle, read_messages
from puna.text.formats.images import PATCHES, image_positions
from puna.text.tokenizer import Tokenizer

__all__ = [
    "BY_TEMPLATE_ONLY",
    "FORMATS",
    "ToolStyle",
    "build_prompt",
    "find",
    "guess",
    "image_positions",
    "meaning_of_end",
]

Builder = Callable[[Tokenizer, Options], Parts]

# By the names that the catalog uses.
FORMATS: Mapping[str, Builder] = {
    "chatml": headers.chatml,
    "llama2": inst.llama2,
    "codellama": inst.llama2,
    "codellama-70b": inst.steps,
    "llama3": headers.LLAMA3,
    "llama3.1": headers.LLAMA31,
    "llama3.2": headers.LLAMA32,
    "llama3.2-vision": headers.LLAMA32_VISION,
    "llama3.3": headers.LLAMA33,
    "llama4": headers.LLAMA4,
}

# Formats of the catalog that are built by no code here: a prompt of theirs is the policy that a conversation
# is judged by, which the template of the model's own file has. Their control tokens are those of the other
# formats, so that a plain conversation would pass for one.
BY_TEMPLATE_ONLY = (
    "llama-guard-1", "llama-guard-2", "llama-guard-3", "llama-guard-3-vision", "llama-guard-4",
)  # fmt: skip

# The first whose tokens are all control tokens of a vocabulary. Llama 1 and 2 have none that would tell. The
# vocabulary of 3.1 is that of the text models of 3.2 and 3.3, whose builders differ in how they call tools.
_TOKENS = {
    "llama4": ("<|header_start|>", "<|eot|>"),
    "llama3.2-vision": ("<|start_header_id|>", "<|eom_id|>", "<|image|>"),
    "llama3.1": ("<|start_header_id|>", "<|eom_id|>", "<|python_tag|>"),
    "llama3": ("<|start_header_id|>", "<|eot_id|>"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "codellama-70b": ("<step>",),
}


def build_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    chat_format: str,
    tools: Sequence[Mapping[str, Any]] | None = None,
    builtin_tools: Builtins = (),
    tool_style: ToolStyle | None = None,
    add_generation_prompt: bool = True,
    date: date | None = None,
    patches: int = PATCHES,
    continue_final_message: bool = False,
) -> list[int]:
    """Token ids of the prompt for `messages` ({"role", "content", …}), up to where the answer begins.

    Roles are system, user, assistant, and tool (or ipython) for a result. `content` is a text, or parts
    {"type": "text", "text"} and {"type": "image"}, for Llama 4 with "tiles": (across, down), each of which
    takes `patches` tokens; images.image_positions says where they stand in the result. An assistant's
    "tool_calls" are those of OpenAI's API; its "stop_reason", "end_of_turn" or "end_of_message", overrules
    how the format ends such a message. Texts are taken as they are (Llama 2 strips them, as Meta does).

    `tools` are definitions, as OpenAI's API has them, and `tool_style` the form in which the model is told to
    call them, where not the one that its generation was trained on; `builtin_tools` those that it knows
    without definition (brave_search, wolfram_alpha, code_interpreter). `date` is today's, for formats that
    state one (3.1 and later 3.x); without it they do not. With `continue_final_message` the prompt ends with
    the text of the last message, which chat.check_final has passed.

    Raises BadInput for messages that are none, that the format has no place for, or tools that it does not
    know; BadValue where the vocabulary lacks the format's tokens.
    """
    build = find(chat_format)
    options = Options(
        chat_format=chat_format,
        messages=read_messages(messages),
        tools=tuple(tools or ()),
        builtin_tools=tuple(builtin_tools),
        tool_style=tool_style,
        add_generation_prompt=add_generation_prompt and not continue_final_message,
        date=date,
        patches=patches,
        continue_final_message=continue_final_message,
    )
    return tokenizer.encode_parts(build(tokenizer, options), bos=False)


def find(chat_format: str) -> Builder:
    """The builder of that name; BadInput names the closest."""
    if chat_format in BY_TEMPLATE_ONLY:
        raise BadInput(
            f"prompts of {chat_format} hold a policy that the chat template of its file states, and no other "
            "is built; use a file with its template"
        )
    if chat_format not in FORMATS:
        raise BadInput(
            f"there is no prompt format {chat_format!r}{closest(chat_format, list(FORMATS))}; known are "
            f"{', '.join(FORMATS)}"
        )
    return FORMATS[chat_format]


def guess(tokenizer: Tokenizer) -> str | None:
    """The format that the control tokens of a vocabulary were made for, or None where they do not tell."""
    return next((name for name, tokens in _TOKENS.items() if all(map(tokenizer.has, tokens))), None)


def meaning_of_end(tokenizer: Tokenizer, token_id: int) -> Literal["turn", "message"] | None:
    """What a token that ends an answer says: "message" is over where the model waits for the result of a
    call (eom), "turn" where the user is to speak (eot, and ends of text); None where it ends nothing.
    """
    if token_id not in tokenizer.end_ids:
        return None
    is_eom = tokenizer.token_bytes(token_id) in (b"<|eom_id|>", b"<|eom|>")
    return "message" if is_eom else "turn"
