"""Finding special tokens in text: the longest at the leftmost place, as Hugging Face tokenizers do."""

from __future__ import annotations

import re
from collections.abc import Mapping

_KEY = 2  # characters by which candidates are found; nearly all special tokens start with "<|"


class SpecialTokens:
    """Cuts text at the given tokens (name to id); one without a name is never found."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        ids = {name: i for name, i in ids.items() if name}
        self._ids = ids
        keys = {name[:_KEY] for name in ids}
        # One alternation of 2,000 names would try each of them at every "<": 40 us.
        self._lengths = {key: _lengths(key, ids) for key in keys}
        self._start = re.compile("|".join(map(re.escape, sorted(keys, key=len, reverse=True))))
        self._first = re.compile("|".join(map(re.escape, sorted({name[0] for name in ids}))))

    def split(self, text: str) -> list[str | int]:
        """Text and ids in their order; no empty text."""
        if not self._ids:
            return [text] if text else []
        parts: list[str | int] = []
        done = at = 0
        while found := self._start.search(text, at):
            at = found.start()
            length = self._match(text, at, found.group())
            if length:
                if at > done:
                    parts.append(text[done:at])
                parts.append(self._ids[text[at : at + length]])
                done = at = at + length
            else:
                at += 1
        if done < len(text):
            parts.append(text[done:])
        return parts

    def mark_names(self, text: str, mark: str) -> str:
        """`text` with `mark` after the first character of each name in it, overlapping ones as well."""
        if not self._ids:
            return text
        return self._first.sub(
            lambda found: found.group() + mark if self._is_name_at(text, found.start()) else found.group(),
            text,
        )

    def mark_beginnings(self, text: str, mark: str) -> str:
        """`text` with `mark` after every character that a name begins with."""
        return self._first.sub(lambda found: found.group() + mark, text) if self._ids else text

    def _is_name_at(self, text: str, at: int) -> bool:
        found = self._start.match(text, at)
        return found is not None and self._match(text, at, found.group()) > 0

    def _match(self, text: str, at: int, key: str) -> int:
        """Length of the longest token at `text[at]`; 0 if none is there."""
        return next((n for n in self._lengths[key] if text[at : at + n] in self._ids), 0)


def _lengths(key: str, ids: Mapping[str, int]) -> list[int]:
    """Lengths of the names that can stand where `key` was found, longest first."""
    return sorted({len(name) for name in ids if name.startswith(key) or key.startswith(name)}, reverse=True)
