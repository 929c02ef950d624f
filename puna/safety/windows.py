"""What of an answer may be shown while it is still being written: only what a judge has let pass.

An answer comes in pieces. A window is a run of its text that is judged at once: pieces that nobody has seen
yet, with some of what was shown before them, so that nothing is missed because a border runs through it. The
last window is judged together with the whole answer.

    shown before           held back
    ──────────────┬───────────────────┬────────▶
            └─ overlap ─┴─ window ─┘   still to come
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from puna.core import BadValue

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Window:
    """Characters `start` to `end` of an answer, to be judged; `is_last` where nothing follows."""

    start: int
    end: int
    text: str
    is_last: bool = False


class Held(Generic[Item]):
    """The pieces of one answer that wait until their windows have passed; at most one window is open.

    A piece is shown whole or not at all, so that what belongs to its text (log-probabilities, a call of a
    tool) is never shown before it. The last piece, the end, has no text: it waits for the whole answer's
    verdict.
    """

    def __init__(self, size: int, overlap: int, begun: str = "") -> None:
        """New characters of a window, and shown ones before them; `begun` is what an answer goes on from,
        which is judged with it. Raises BadValue."""
        if size < 1 or overlap < 0:
            raise BadValue(
                "a window must be at least 1 character long and its overlap at least 0, "
                f"got {size} and {overlap}"
            )
        self._size = size
        self._overlap = overlap
        self._parts = [begun]
        self._waiting: deque[Item] = deque()  # pieces not shown
        self._n_shown = self._n_seen = len(begun)  # characters
        self._open: Window | None = None
        self._n_open = 0  # pieces that were there when it was opened
        self.is_ended = False

    @property
    def text(self) -> str:
        """All that the answer has so far, shown or not."""
        return "".join(self._parts)

    @property
    def n_held(self) -> int:
        """Characters that wait."""
        return self._n_seen - self._n_shown

    def push(self, item: Item, text: str) -> None:
        """The next piece, and the text of it that is judged."""
        assert not self.is_ended
        self._parts.append(text)
        self._n_seen += len(text)
        self._waiting.append(item)

    def end(self) -> None:
        """Nothing follows the last piece that was pushed; said before the next window is taken."""
        self.is_ended = True

    def release(self, *, but_end: bool = False) -> list[Item]:
        """The pieces that wait, for whom no window is needed; with `but_end`, all except for the end."""
        self._n_shown = self._n_seen
        n_kept = 1 if but_end and self.is_ended and self._waiting else 0
        return [self._waiting.popleft() for _ in range(len(self._waiting) - n_kept)]

    def next_window(self) -> Window | None:
        """The window to be judged now; None while one is open or too little has come.

        Its verdict is given to passed(), or nothing of this answer is shown any more.
        """
        if self._open is not None or not (self.is_ended or self.n_held >= self._size):
            return None
        if not self._waiting:
            return None
        start = 0 if self.is_ended else max(0, self._n_shown - self._overlap)
        self._n_open = len(self._waiting)
        self._open = Window(start, self._n_seen, self.text[start:], self.is_ended)
        return self._open

    def passed(self) -> list[Item]:
        """The open window is harmless -> the pieces that may now be shown, in their order."""
        window = self._open
        assert window is not None
        self._open = None
        self._n_shown = window.end
        return [self._waiting.popleft() for _ in range(self._n_open)]
