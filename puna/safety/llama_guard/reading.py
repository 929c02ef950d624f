"""What a checkpoint's chat template says of a guard, and what a guard's answers mean.

The template puts a conversation into a task with a list of categories, which tells codes from generation to
generation apart. The answer is "safe", or "unsafe" and a line of codes, often after empty lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

from puna.core import BadValue, SamplingParams, TokenLogprob
from puna.safety.llama_guard.prompt import GuardPrompt, build, check_turns
from puna.safety.llama_guard.versions import Version, versions
from puna.safety.taxonomy import slug
from puna.safety.verdict import Content, Turn, Verdict
from puna.text.chat import render_chat
from puna.text.tokenizer import Tokenizer

# the template of Llama Guard 3 Vision, as Meta's notebook shows it, has no blank between two of the words
_BEGIN = re.compile("<BEGIN UNSAFE ?CONTENT CATEGORIES>")
_END = "<END UNSAFE CONTENT CATEGORIES>"
_CATEGORY = re.compile(r"^([SO]\d+): *([^.\n]+)\.", re.MULTILINE)
_LONGEST = 200  # tokens of an answer: all codes there are
_PROBE = "puna asks"  # a text that no template has


@dataclass(frozen=True, slots=True)
class Guard:
    """What is to be known of a guard model."""

    categories: Mapping[str, str]  # code -> name as a word (taxonomy.slug), in the order of the prompt
    in_parts: bool  # its template reads lists of parts, and no plain texts
    safe_ids: frozenset[int]  # tokens that begin the word
    unsafe_ids: frozenset[int]

    @property
    def pattern(self) -> str:
        """A regular expression of its answers."""
        more = rf"(,{self.code}){{0,{len(self.categories) - 1}}}"
        return rf"[ \n]{{0,2}}(safe|unsafe\n{self.code}{more})"

    @property
    def code(self) -> str:
        """A regular expression of its codes."""
        return f"({'|'.join(self.categories)})"

    @property
    def reply(self) -> str:
        """A regular expression of what is read as an answer that was held to nothing; more than `pattern`."""
        return rf"\s*(?:safe|(?P<bad>unsafe)(?:\n(?P<codes>{self.code}(?:, ?{self.code})*))?)\s*"

    def conversation(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        """The messages of which the last is to be judged. Its template says by their number who it is from.

        Raises BadValue unless user and assistant take turns, and what turn() raises.
        """
        check_turns(turns)
        return [{**self.turn(content), "role": role} for role, content in turns]

    def turn(self, content: Content) -> dict[str, Any]:
        """A message of the user. Raises BadValue for images that the guard cannot be shown."""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else [*content]
        if self.in_parts:
            return {"role": "user", "content": parts}
        if any(part["type"] != "text" for part in parts):
            raise BadValue(
                "this guard judges texts only, got an image; ask one that sees, such as llama-guard-4"
            )
        return {"role": "user", "content": "\n".join(part["text"] for part in parts)}


def is_guard(template: str) -> bool:
    """Whether a chat template is that of a guard model."""
    return _BEGIN.search(template) is not None


def guard_of(tokenizer: Tokenizer) -> Guard | None:
    """The guard that a model with this tokenizer and template is; None for any other model.

    Raises BadInput where the template takes no message, BadValue where it names no category or no text.
    """
    if not is_guard(tokenizer.chat_template or ""):
        return None
    for in_parts in (False, True):
        content = [{"type": "text", "text": _PROBE}] if in_parts else _PROBE
        prompt = render_chat(tokenizer, [{"role": "user", "content": content}])
        if _PROBE in prompt:
            break
    else:
        raise BadValue("a guard's chat template must put the message into its prompt, this one leaves it out")
    listed = _BEGIN.split(prompt, maxsplit=1)[-1].partition(_END)[0]
    found = {code: slug(name) for code, name in _CATEGORY.findall(listed)}
    if not found:
        raise BadValue("a guard's chat template must list categories as S1: Name., found none")
    return Guard(found, in_parts, *words_of(tokenizer))


def guard_for(prompt: GuardPrompt, tokenizer: Tokenizer) -> Guard:
    """The guard that a prompt of our own makes of a model."""
    return Guard({one.code: one.word for one in prompt.categories}, True, *words_of(tokenizer))


def version_of(tokenizer: Tokenizer) -> Version | None:
    """The generation whose prompt is what a model's template makes, to the letter; None for none of them."""
    found = guard_of(tokenizer)
    if found is None:
        return None
    turns: list[Turn] = [("user", _PROBE), ("assistant", _PROBE)]
    rendered = _BEGIN.sub(
        "<BEGIN UNSAFE CONTENT CATEGORIES>", render_chat(tokenizer, found.conversation(turns))
    )
    same = [one for one in versions().values() if build(one, turns).text == rendered]
    return same[0] if same else None


def params_of(guard: Guard) -> SamplingParams:
    """How a guard is asked: greedily, with what verdict() reads."""
    ids = tuple(sorted(guard.safe_ids | guard.unsafe_ids))
    return SamplingParams(temperature=0, max_tokens=_LONGEST, logprobs=0, logprob_ids=ids)


def words_of(tokenizer: Tokenizer) -> tuple[frozenset[int], frozenset[int]]:
    """Tokens after which an answer can only be safe, and those after which it can only be unsafe."""
    return _beginnings(tokenizer, "safe"), _beginnings(tokenizer, "unsafe")


def _beginnings(tokenizer: Tokenizer, word: str) -> frozenset[int]:
    """Tokens after which an answer can only be this word."""
    starts = {word[:n].encode() for n in range(1, len(word) + 1)}
    ordinary = (i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids)
    return frozenset(i for i in ordinary if tokenizer.token_bytes(i).lstrip(b" ") in starts)


def verdict(guard: Guard, text: str, logprobs: Sequence[TokenLogprob]) -> Verdict:
    """What an answer says; `logprobs` have those of the guard's tokens at every place.

    The probability is read where the word begins, behind white space. A word without codes is unsafe in no
    category (Llama Guard 4 has been seen to write that). Raises BadValue for any other answer.
    """
    read = re.fullmatch(guard.reply, text)
    both = guard.safe_ids | guard.unsafe_ids
    entry = next((entry for entry in logprobs if entry.token_id in both), None)
    if read is None or entry is None:
        raise BadValue(f"a guard must answer safe, or unsafe and codes, this one answered {text!r:.80}")
    codes = tuple(dict.fromkeys(re.findall(r"[SO]\d+", read["codes"] or "")))
    known = {**dict(entry.top), entry.token_id: entry.logprob}
    safe, unsafe = (sum(exp(known[i]) for i in ids) for ids in (guard.safe_ids, guard.unsafe_ids))
    is_unsafe = read["bad"] is not None
    score = unsafe / (safe + unsafe) if safe + unsafe else float(is_unsafe)
    return Verdict(is_unsafe, score, tuple(guard.categories[code] for code in codes))
