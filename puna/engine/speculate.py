"""Prompt lookup: guess that the text goes on as it did the last time the same few tokens occurred (Saxena
2023).

The engine runs the guesses together with the token they follow, and keeps them as far as the sampler
chooses the same tokens: a guess can save a step but never change an answer.
"""

from __future__ import annotations

from array import array

_N = 3  # tokens that must agree
_BITS = 20  # per token in a packed n-gram; a larger vocabulary would only make some guesses worse
_MASK = (1 << (_N * _BITS)) - 1
_LONGEST = 8
_LONGEST_PAUSE = 64

NO_GUESS: array[int] = array("i")


class Guesser:
    """The n-grams of one sequence, and how well guessing from them has worked.

    A guessed token costs about a fifth of a step on a CPU, where reading the weights dominates. So
    guesses grow while they all hold, shrink to what held, and pause when fewer than a quarter did: the
    more often in a row that happens, the longer, up to 64 tokens.
    """

    def __init__(self) -> None:
        self._next_of: dict[int, int] = {}  # packed n-gram -> position after its last occurrence
        self._last = 0  # the packed n-gram at the end
        self._n_indexed = 0
        self._length = 2
        self._pause = 0  # tokens to wait before the next guess
        self._next_pause = 1

    def guess(self, tokens: array[int], limit: int) -> array[int]:
        """Up to `limit` tokens that may follow `tokens`, which only ever grow from call to call."""
        if self._pause:
            self._pause -= 1
            return NO_GUESS
        self._index(tokens)
        start = self._next_of.get(self._last)
        if start is None:
            return NO_GUESS
        n, period = min(self._length, limit), len(tokens) - start
        if n <= period:
            return tokens[start : start + n]
        return array("i", [tokens[start + i % period] for i in range(n)])  # the text repeats itself

    def learn(self, n_guessed: int, n_right: int) -> None:
        """The first n_right of n_guessed tokens were what the sampler chose."""
        if 4 * n_right < n_guessed:
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, _LONGEST_PAUSE)
        else:
            self._next_pause = 1
        self._length = min(2 * self._length, _LONGEST) if n_right == n_guessed else n_right + 1

    def _index(self, tokens: array[int]) -> None:
        last, next_of = self._last, self._next_of
        for position in range(self._n_indexed, len(tokens)):
            if position >= _N:
                next_of[last] = position
            last = (last << _BITS | tokens[position]) & _MASK
        self._last = last
        self._n_indexed = len(tokens)
