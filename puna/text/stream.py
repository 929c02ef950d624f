"""Tokens of a growing answer to text that is safe to show: whole characters, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence, Set

from puna.text.tokenizer import Tokenizer

_new_decoder = codecs.getincrementaldecoder("utf-8")


class TextStream:
    """A core.TextSink. What `push` and `flush` return, joined, is the decoded text up to the first stop
    string.

    The first stop string is the one that is complete first as characters come, the longest of those that end
    together; so it does not depend on how the text is cut into tokens. `stopped` names it once it was met,
    and nothing comes after. The other arguments are those of Tokenizer.speller.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        skip_special: bool = False,
        shown: Set[int] = frozenset(),
        continuing: bool = False,
    ) -> None:
        self.stopped: str | None = None
        self._spell = tokenizer.speller(skip_special=skip_special, shown=shown, continuing=continuing)
        self._decode = _new_decoder("replace").decode
        self._stops = tuple(stop)
        self._held = ""  # text that may be the beginning of a stop string
        # A stop string's beginnings, short of the whole, and the characters that these can end in.
        self._beginnings = frozenset(s[:n] for s in stop for n in range(1, len(s)))
        self._last_characters = frozenset(beginning[-1] for beginning in self._beginnings)
        self._longest = max(map(len, self._beginnings), default=0)

    def push(self, token_id: int) -> str:
        """Take the next token; returns the text that is certain by now, often none.

        Raises BadValue for an id outside the vocabulary.
        """
        text = self._decode(self._spell(token_id))
        return self._until_stop(text) if self._stops and text else text

    def flush(self) -> str:
        """The answer has ended: returns the text that was held back, half a character as U+FFFD."""
        text = self._until_stop(self._decode(b"", True)) if self._stops else self._decode(b"", True)
        held, self._held = self._held, ""
        return text + held

    def _until_stop(self, new: str) -> str:
        if self.stopped is not None:
            return ""
        text = self._held + new
        found = [(at + len(s), at, s) for s in self._stops if (at := text.find(s)) >= 0]
        if found:
            _, at, self.stopped = min(found)
            self._held = ""
            return text[:at]
        certain = len(text) - self._beginning(text)
        self._held = text[certain:]
        return text[:certain]

    def _beginning(self, text: str) -> int:
        """How many characters at the end of `text` may be the beginning of a stop string."""
        if text[-1:] not in self._last_characters:
            return 0
        longest = min(self._longest, len(text))
        return next((n for n in range(longest, 0, -1) if text[-n:] in self._beginnings), 0)
