"""[INST] and what came of it: Llama 2 and Code Llama, with its 70B model's own format and infilling.

Sources: Meta's codellama at 1af62e1 (llama/generation.py, llama/tokenizer.py), whose [INST] is Llama 2's.
"""

from __future__ import annotations

from puna.core import BadInput, BadValue
from puna.text.formats.base import Options, Parts, Turn, refuse_tools, text_of
from puna.text.tokenizer import Tokenizer


def llama2(tokenizer: Tokenizer, options: Options) -> Parts:
    """<s>[INST] <<SYS>> system <</SYS>> user [/INST] answer </s><s>[INST] user [/INST]

    A pair of question and answer is one text with BOS before and EOS after it. Without a system message there
    is no <<SYS>>, not an empty one. These marks are text, not tokens: a message that has them looks alike, as
    it does to Meta's code, and is refused there and here.
    """
    refuse_tools(options)
    turns = list(options.messages)
    system = text_of(turns.pop(0), options) if turns[0].role == "system" else None
    texts = _alternating(turns, options)
    for text in [system or "", *texts]:
        if mark := next((m for m in ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>") if m in text), None):
            raise BadInput(
                f"a message must not have the format's own mark {mark} in its text, where the model cannot "
                "tell them apart; take it out"
            )
    if system is not None:
        texts[0] = f"<<SYS>>\n{system}\n<</SYS>>\n\n{texts[0]}"
    parts: Parts = []
    for i in range(0, len(texts), 2):
        question = f"[INST] {texts[i].strip()} [/INST]"
        if options.continue_final_message and i + 2 == len(texts):
            parts += [_bos(tokenizer), f"{question} {texts[i + 1].lstrip()}"]
        elif i + 1 < len(texts):
            answered = f"{question} {texts[i + 1].strip()} "
            parts += [_bos(tokenizer), answered, _eos(tokenizer)]
        else:
            parts += [_bos(tokenizer), question]
    return parts


def steps(tokenizer: Tokenizer, options: Options) -> Parts:
    """Code Llama 70B: " Source: user", an empty line, the text, and the token <step> after each message."""
    refuse_tools(options)
    turns = list(options.messages)
    system = text_of(turns.pop(0), options) if turns[0].role == "system" else ""
    texts = _alternating(turns, options)
    step = tokenizer.id("<step>")
    parts: Parts = [_bos(tokenizer)]
    for i, text in enumerate([system, *texts]):
        role = "system" if i == 0 else ("assistant", "user")[i % 2]
        parts.append(f" Source: {role}")
        if text:
            parts.append(f"\n\n {text.strip()}")
        parts.append(step)
    if options.continue_final_message:
        begun = f"\n\n {texts[-1].lstrip()}"
        return [*parts[:-3], " Source: assistant\nDestination: user", begun]
    if options.add_generation_prompt:
        parts += [" Source: assistant\nDestination: user", "\n\n "]
    return parts


def infill(tokenizer: Tokenizer, prefix: str, suffix: str, *, suffix_first: bool = False) -> list[int]:
    """Token ids after which Code Llama (7B, 13B) writes what stands between `prefix` and `suffix`.

    The order is prefix, suffix, middle: <PRE> prefix <SUF>suffix <MID>; or with `suffix_first`, which suits
    code that is still typed: <PRE> <SUF>suffix <MID> prefix. The prefix has the space that SentencePiece puts
    before a text, the suffix has none, and so should what is decoded (`continuing`). Answers end at <EOT>.
    Raises BadValue where the vocabulary has no such tokens.
    """
    pre, suf, mid = (_infill_token(tokenizer, name) for name in ("PRE", "SUF", "MID"))
    before = tokenizer.encode_parts([prefix], bos=False) if prefix else []
    after = _without_space(tokenizer, suffix)
    bos = _bos(tokenizer)
    return [bos, pre, suf, *after, mid, *before] if suffix_first else [bos, pre, *before, suf, *after, mid]


def _infill_token(tokenizer: Tokenizer, name: str) -> int:
    if name not in tokenizer.infill_ids:
        raise BadValue(
            f"to fill in code the vocabulary must have the token <{name}>; use Code Llama 7B or 13B"
        )
    return tokenizer.infill_ids[name]


def _without_space(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that goes on, without a space before it; as Meta does, by a character in front."""
    if not text:
        return []
    stub = tokenizer.encode_parts(["\u263a"], bos=False)
    return tokenizer.encode_parts(["\u263a" + text], bos=False)[len(stub) :]


def _alternating(turns: list[Turn], options: Options) -> list[str]:
    """Texts of user and assistant in turn, from the user to the user."""
    wanted = ["user", "assistant"]
    if not turns or any(turn.role != wanted[i % 2] for i, turn in enumerate(turns)):
        roles = ", ".join(turn.role for turn in turns) or "none"
        raise BadInput(
            f"roles of the format {options.chat_format} must alternate after the system message: user, "
            f"assistant, user, …, found {roles}"
        )
    if options.add_generation_prompt and turns[-1].role != "user":
        raise BadInput(
            f"the last message must be the user's for the format {options.chat_format}, found the assistant's"
        )
    return [text_of(turn, options) for turn in turns]


def _bos(tokenizer: Tokenizer) -> int:
    return _known(tokenizer.bos_id, "begins")


def _eos(tokenizer: Tokenizer) -> int:
    return _known(tokenizer.eos_id, "ends")


def _known(token_id: int | None, what: str) -> int:
    if token_id is None:
        raise BadValue(f"the vocabulary must say which token {what} a text, it does not; use a complete file")
    return token_id
