"""How far an answer has come in its grammar: matchers of llguidance, and what they share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from puna.engine.unique import Repeats, Text

if TYPE_CHECKING:
    from llguidance import LLMatcher

_MAX_RETRIES = 3  # of one answer


class Grammar:
    """A compiled grammar, for any number of answers, from any thread.

    Answers share a lexer, which remembers for all of them what it has found out. Where one answer exceeds a
    limit, that lexer is of no more use to the others; `anew` gives matchers with lexers of their own.
    `unique` is for lists that no grammar can hold to being unique: what bars tokens, and how reading begins.
    """

    def __init__(
        self, anew: Callable[[], LLMatcher], n_bytes: int, unique: tuple[Repeats, Text] | None = None
    ) -> None:
        self.anew = anew
        self.n_bytes = n_bytes  # of a mask
        self.repeats = None if unique is None else unique[0]
        self.reading = None if unique is None else unique[1]
        self._matcher = anew()  # never advanced
        self._lock = Lock()

    def start(self) -> GrammarState:
        """The state of a new answer."""
        with self._lock:
            return GrammarState(self._matcher.deep_copy(), self)

    def renew(self) -> None:
        """Let later answers share a new lexer."""
        matcher = self.anew()
        with self._lock:
            self._matcher = matcher


class GrammarState:
    """How far one answer has come in its grammar; a core.TokenGrammar."""

    def __init__(self, matcher: LLMatcher, grammar: Grammar) -> None:
        self._matcher = matcher
        self._grammar = grammar
        self._masks = np.zeros((1, grammar.n_bytes), np.uint8)
        self._taken: list[int] = []
        self._n_retries = 0
        self._reading = grammar.reading

    @property
    def may_end(self) -> bool:
        return bool(self._matcher.is_accepting())

    @property
    def is_complete(self) -> bool:
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    @property
    def problem(self) -> str:
        return explanation(self._matcher.get_error())

    @property
    def warnings(self) -> list[str]:
        """What the compiler left out of the grammar."""
        return self._matcher.get_grammar_warnings()

    def masks(self, draft: Sequence[int], /) -> NDArray[np.uint8]:
        n = 1 + len(draft)
        if len(self._masks) < n:
            self._masks = np.zeros((n, self._masks.shape[1]), np.uint8)
        self._walk(draft)
        if self._retry() and self._walk(draft):
            self._retry()  # an error behind a guess is none of the answer
        return self._masks[:n]

    def probe(self) -> bool:
        """Whether anything can be next; computes the first masks, and tries no second time if it cannot."""
        draft = self.forced()[:2]
        self._masks = np.zeros((1 + len(draft), self._grammar.n_bytes), np.uint8)
        self._walk(draft)
        return bool(self._masks[0].any())

    def n_possible(self, draft: Sequence[int], /) -> int:
        n = int(self._matcher.validate_tokens(list(draft)))
        reading = self._reading
        for i, token_id in enumerate(draft[:n]):
            if reading is not None and (reading := self._read(reading, token_id)) is None:
                return i
        return n

    def forced(self) -> Sequence[int]:
        return self._matcher.compute_ff_tokens()

    def accept(self, token_id: int, /) -> None:
        self._taken.append(token_id)
        if self._reading is not None:
            self._reading = self._read(self._reading, token_id)
            assert self._reading is not None, "a token that the mask had barred"
        if not self._matcher.consume_token(token_id):
            self._retry()

    def _walk(self, draft: Sequence[int]) -> int:
        """Fill in the masks along a draft, and go back; returns how much of the draft was taken."""
        n_taken, reading = 0, self._reading
        for i in range(1 + len(draft)):
            if i:
                token_id = draft[i - 1]
                is_repeated = reading is not None and (reading := self._read(reading, token_id)) is None
                if is_repeated or not self._step(token_id):
                    self._masks[i : 1 + len(draft)] = 0
                    break
            n_taken = i
            self._fill(self._masks[i])
            if reading is not None and self._grammar.repeats is not None:
                self._grammar.repeats.bar(reading, self._masks[i])
        if n_taken:
            self._matcher.rollback(n_taken)
        return n_taken

    def _read(self, reading: Text, token_id: int) -> Text | None:
        assert self._grammar.repeats is not None
        return self._grammar.repeats.after(reading, token_id)

    def _step(self, token_id: int) -> bool:
        """Take a token of a draft, unless there is none to follow it."""
        return not self._matcher.is_error() and bool(self._matcher.try_consume_tokens([token_id]))

    def _fill(self, mask: NDArray[np.uint8]) -> None:
        """No bit is set where the matcher is in error or the answer has ended."""
        if self._matcher.is_error() or self._matcher.is_stopped():
            mask.fill(0)
        else:
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            if self._matcher.is_error():
                mask.fill(0)

    def _retry(self) -> bool:
        """After an error, come here again with a lexer of its own: what is wrong then is wrong by itself.

        Other answers, and guesses, bring the lexer to its limits too. False if there was no error, or this
        was tried often enough, or the answer itself leads to it.
        """
        if not self._matcher.is_error() or self._n_retries == _MAX_RETRIES:
            return False
        if not self._n_retries:
            self._grammar.renew()
        self._n_retries += 1
        self._matcher = self._grammar.anew()
        return self._matcher.try_consume_tokens(self._taken) == len(self._taken)


def explanation(problem: str) -> str:
    """What llguidance says, in one line without places in texts that nobody wrote."""
    if "\nerror: " in problem:  # of a regular expression, after drawing where
        problem = problem.rpartition("\nerror: ")[2]
    line = re.sub(r"^(?:at )?\d+\(\d+\): ", "", problem.partition("\n")[0].strip())
    return line.rstrip(".;:")[:240]
