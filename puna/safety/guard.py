"""Llama Guard, every generation: how it is asked, and what its answers mean.

Its chat template puts a conversation into a task with a list of categories, which tells codes from generation
to generation apart. The answer is "safe", or "unsafe" and a line of codes, often after empty lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

from puna.core import BadValue, TokenLogprob
from puna.safety.taxonomy import slug
from puna.safety.verdict import Content, Turn, Verdict
from puna.text.chat import render_chat
from puna.text.tokenizer import Tokenizer

_BEGIN, _END = "<BEGIN UNSAFE CONTENT CATEGORIES>", "<END UNSAFE CONTENT CATEGORIES>"
_CATEGORY = re.compile(r"^([SO]\d+): *([^.\n]+)\.", re.MULTILINE)
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
        code = "|".join(self.categories)
        return rf"[ \n]{{0,2}}(safe|unsafe\n({code})(,({code})){{0,{len(self.categories) - 1}}})"

    def conversation(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        """The messages of which the last is to be judged. Its template says by their number who it is from.

        Raises BadValue unless user and assistant take turns, and what turn() raises.
        """
        for i, (role, _) in enumerate(turns):
            expected = ("user", "assistant")[i % 2]
            if role != expected:
                raise BadValue(
                    "a guard judges conversations in which user and assistant take turns, message "
                    f"{i} must be the {expected}'s, found {role}; leave out what is none of them"
                )
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
    return _BEGIN in template


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
    listed = prompt.partition(_BEGIN)[2].partition(_END)[0]
    found = {code: slug(name) for code, name in _CATEGORY.findall(listed)}
    if not found:
        raise BadValue("a guard's chat template must list categories as S1: Name., found none")
    return Guard(found, in_parts, _beginnings(tokenizer, "safe"), _beginnings(tokenizer, "unsafe"))


def _beginnings(tokenizer: Tokenizer, word: str) -> frozenset[int]:
    """Tokens after which an answer can only be this word."""
    starts = {word[:n].encode() for n in range(1, len(word) + 1)}
    ordinary = (i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids)
    return frozenset(i for i in ordinary if tokenizer.token_bytes(i).lstrip(b" ") in starts)


def verdict(guard: Guard, text: str, logprobs: Sequence[TokenLogprob]) -> Verdict:
    """What an answer says; `logprobs` have those of the guard's tokens at every place.

    The probability is read where the word begins, behind white space. Raises BadValue for any other answer.
    """
    if re.fullmatch(guard.pattern, text) is None:
        raise BadValue(f"a guard must answer safe, or unsafe and codes, this one answered {text!r:.80}")
    codes = tuple(dict.fromkeys(re.findall(r"[SO]\d+", text)))
    both = guard.safe_ids | guard.unsafe_ids
    entry = next(entry for entry in logprobs if entry.token_id in both)
    known = {**dict(entry.top), entry.token_id: entry.logprob}
    safe, unsafe = (sum(exp(known[i]) for i in ids) for ids in (guard.safe_ids, guard.unsafe_ids))
    score = unsafe / (safe + unsafe) if safe + unsafe else float(bool(codes))
    return Verdict(bool(codes), score, tuple(guard.categories[code] for code in codes))
