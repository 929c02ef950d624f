"""Texts that spell control tokens: of Llama's generations, of ChatML and of other families.

A warning, not a breach: Puna encodes what messages say as text, and no text becomes a control token
(text/special.py). But somebody who writes one wants a model to take their words for another speaker's, and
other programs that read the same text may fall for it. Disguises are found too: full-width letters,
look-alikes of other scripts, invisible characters within, spaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from puna.safety.scanners.finding import Finding
from puna.safety.scanners.folding import fold

KIND = "special"

# name between bars -> whose it is; Llama's are those of Meta's package llama-models
_BARRED = {
    **dict.fromkeys(
        ("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id", "eom_id",
         "python_tag", "finetune_right_pad_id", "step_id", "image"), "Llama 3"),
    **dict.fromkeys(
        ("header_start", "header_end", "eot", "eom", "step", "python_start", "python_end", "image_start",
         "image_end", "patch", "tile_x_separator", "tile_y_separator", "text_post_train_reserved",
         "finetune_right_pad", "vision_reserved_special_token", "reasoning_thinking_start",
         "reasoning_thinking_end"), "Llama 4"),
    **dict.fromkeys(("im_start", "im_end", "im_sep"), "ChatML"),
    **dict.fromkeys(("endoftext", "endofprompt", "fim_prefix", "fim_middle", "fim_suffix"), "GPT and Qwen"),
    **dict.fromkeys(("system", "user", "assistant", "end"), "Phi"),
    **dict.fromkeys(("start", "message", "channel", "return", "call", "constrain"), "Harmony"),
    **dict.fromkeys(("begin_of_sentence", "end_of_sentence"), "DeepSeek"),
    **dict.fromkeys(("start_of_role", "end_of_role"), "Granite"),
    **dict.fromkeys(("START_OF_TURN_TOKEN", "END_OF_TURN_TOKEN", "USER_TOKEN", "CHATBOT_TOKEN",
                     "SYSTEM_TOKEN"), "Command R"),
}  # fmt: skip
_BARE = {
    "[INST]": "Llama 2", "[/INST]": "Llama 2", "<<SYS>>": "Llama 2", "<</SYS>>": "Llama 2",
    "<SUF>": "Code Llama", "<MID>": "Code Llama", "<EOT>": "Code Llama",
    "<start_of_turn>": "Gemma", "<end_of_turn>": "Gemma",
    "[AVAILABLE_TOOLS]": "Mistral", "[/AVAILABLE_TOOLS]": "Mistral", "[TOOL_CALLS]": "Mistral",
    "[TOOL_RESULTS]": "Mistral", "[/TOOL_RESULTS]": "Mistral", "[SYSTEM_PROMPT]": "Mistral",
    "[/SYSTEM_PROMPT]": "Mistral",
}  # fmt: skip
_GAP = r"\s{0,3}"


def _spaced(name: str) -> str:
    """The name with spaces between its characters, or instead of its underscores."""
    return r"\s?".join(r"[_\s]?" if c == "_" else re.escape(c) for c in name)


# words that stand between bars in code as well (`f <| start |> g`) count only as tokens are written
_ROOMY = sorted((name for name in _BARRED if "_" in name), key=len, reverse=True)
_PATTERN = re.compile(
    rf"<\|[A-Za-z][A-Za-z0-9_.]{{1,48}}\|>"
    rf"|(?i:<{_GAP}\|{_GAP}(?:{'|'.join(map(_spaced, _ROOMY))}){_GAP}\|{_GAP}>)"
    rf"|(?:{'|'.join(map(_spaced, _BARE))})"
)


def _key(name: str) -> str:
    return re.sub(r"[\s_]", "", name).lower()


_NAMES = {f"<|{name}|>": owner for name, owner in _BARRED.items()} | _BARE
_OWNERS = {_key(name): (name, owner) for name, owner in _NAMES.items()}


def scan(text: str) -> list[Finding]:
    """Control tokens that the text spells, in their order. Raises BadInput without the extra `safety`."""
    return list(_scan(text))


def _scan(text: str) -> Iterator[Finding]:
    folded, places = fold(text)
    for found in _PATTERN.finditer(folded):
        start, end = found.span()
        if places is not None:
            start, end = places[start], places[end - 1] + 1
        exact = found[0], _NAMES.get(found[0], "")
        name, owner = exact if exact[1] else _OWNERS.get(_key(found[0]), exact)
        whose = f"a control token of {owner}" if owner else "written as control tokens are"
        if text[start:end] == name:
            yield Finding(start, end, KIND, "control-token", f"{name}, {whose}")
        else:
            yield Finding(start, end, KIND, "disguised-control-token", f"looks like {name}, {whose}")
