"""Guesses at what sequences go on with; a guess can save a step but never change an answer, because the
engine runs guesses together with the token they follow, and keeps them as far as the sampler chooses the same
tokens.

Prompt lookup guesses that the text goes on as it did the last time the same few tokens occurred (Saxena
2023); draft.py asks a smaller model.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as List
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from puna.engine.sequence import Sequence

_N = 3  # tokens that must agree
_BITS = 20  # per token in a packed n-gram; a larger vocabulary would only make some guesses worse
_MASK = (1 << (_N * _BITS)) - 1
_LONGEST = 8
_LONGEST_PAUSE = 64

NO_GUESS: array[int] = array("i")


class Proposer(Protocol):
    """Where guesses come from. For the engine's thread."""

    def propose(self, asked: List[tuple[Sequence, int]]) -> None:
        """Put guesses into the draft of each sequence, at most as many as stand beside it; there are none."""
        ...

    def learn(self, seq: Sequence, n_guessed: int, n_right: int) -> None:
        """The first n_right of n_guessed tokens were what the sampler chose."""
        ...

    def forget(self, seq: Sequence) -> None:
        """`seq` has ended."""
        ...

    def close(self) -> None: ...


class PromptLookup:
    """Guesses from the text of a sequence itself."""

    def propose(self, asked: List[tuple[Sequence, int]]) -> None:
        for seq, limit in asked:
            seq.draft = seq.guesser.guess(seq.tokens, limit)

    def learn(self, seq: Sequence, n_guessed: int, n_right: int) -> None:
        seq.guesser.pace.learn(n_guessed, n_right)

    def forget(self, seq: Sequence) -> None: ...

    def close(self) -> None: ...


class Pace:
    """How many tokens to guess for a sequence, by how well it has gone.

    A guessed token costs about a fifth of a step on a CPU, where reading the weights dominates. So
    guesses grow while they all hold, shrink to what held, and pause when fewer than a quarter did: the
    more often in a row that happens, the longer, up to 64 tokens.
    """

    def __init__(self) -> None:
        self.length = 2
        self._pause = 0  # tokens to wait before the next guess
        self._next_pause = 1

    def is_due(self) -> bool:
        """Whether to guess the next token; to be asked once for each."""
        if self._pause:
            self._pause -= 1
            return False
        return True

    def learn(self, n_guessed: int, n_right: int) -> None:
        """The first n_right of n_guessed tokens were right."""
        if 4 * n_right < n_guessed:
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, _LONGEST_PAUSE)
        else:
            self._next_pause = 1
        self.length = min(2 * self.length, _LONGEST) if n_right == n_guessed else n_right + 1


class Guesser:
    """The n-grams of one sequence, and how well guessing from them has worked."""

    def __init__(self) -> None:
        self.pace = Pace()
        self._next_of: dict[int, int] = {}  # packed n-gram -> position after its last occurrence
        self._last = 0  # the packed n-gram at the end
        self._n_indexed = 0

    def guess(self, tokens: array[int], limit: int) -> array[int]:
        """Up to `limit` tokens that may follow `tokens`, which only ever grow from call to call."""
        if not self.pace.is_due():
            return NO_GUESS
        self._index(tokens)
        start = self._next_of.get(self._last)
        if start is None:
            return NO_GUESS
        n, period = min(self.pace.length, limit), len(tokens) - start
        if n <= period:
            return tokens[start : start + n]
        return array("i", [tokens[start + i % period] for i in range(n)])  # the text repeats itself

    def _index(self, tokens: array[int]) -> None:
        last, next_of = self._last, self._next_of
        for position in range(self._n_indexed, len(tokens)):
            if position >= _N:
                next_of[last] = position
            last = (last << _BITS | tokens[position]) & _MASK
        self._last = last
        self._n_indexed = len(tokens)
