"""Whatever sizes pieces and windows have, nothing is shown that no judge has let pass."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core import BadValue
from puna.safety.windows import Held, Window

TEXT = "0123456789abcdefghijklmnopqrstuvwxyz" * 4


def cut(text: str, borders: list[int]) -> list[str]:
    places = [0, *sorted(min(b, len(text)) for b in borders), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(places)]


@given(
    st.integers(0, 144),
    st.lists(st.integers(0, 144), max_size=60),
    st.integers(1, 50),
    st.integers(0, 50),
    st.lists(st.booleans(), max_size=70),
    st.integers(0, 143),
)
def test_nothing_is_shown_before_it_is_judged(
    n: int, borders: list[int], size: int, overlap: int, is_slow: list[bool], bad: int
) -> None:
    """A judge that blocks every window with the character at `bad`, and answers early or late."""
    text, held, shown = TEXT[:n], Held[str](size, overlap), ""
    pieces, judged, slow = [*cut(text, borders), ""], list[Window](), iter(is_slow)
    is_blocked = False

    def judge(window: Window | None) -> None:
        nonlocal shown, is_blocked
        if window is None or is_blocked:
            return
        judged.append(window)
        assert window.text == text[window.start : window.end]
        if window.start <= bad < window.end:
            is_blocked = True
        else:
            shown += "".join(held.passed())

    window = None
    for i, piece in enumerate(pieces):
        held.push(piece, piece)
        if i == len(pieces) - 1:
            held.end()
        window = window or held.next_window()
        if not next(slow, False):
            judge(window)
            window = None
        if is_blocked:
            break
        assert held.n_held == len(held.text) - len(shown)
    while not is_blocked and (window := window or held.next_window()):
        judge(window)
        window = None
    assert text.startswith(shown)
    assert is_blocked == (bad < n)
    assert bad not in range(len(shown))  # nothing of a blocked window that was not in one that passed
    for before, after in itertools.pairwise(judged):  # no border without the overlap
        assert after.start <= max(0, before.end - overlap)
    if not is_blocked:
        assert shown == text
        assert judged[-1] == Window(0, n, text, is_last=True)


def test_pieces_are_shown_whole_and_what_belongs_to_no_text_with_what_was_before_it() -> None:
    held = Held[int](4, 2)
    for number, piece in enumerate(["ab", "", "cd", "", "e"]):
        held.push(number, piece)
        if number == 2:
            assert held.next_window() == Window(0, 4, "abcd")
    assert held.next_window() is None  # one at a time
    assert held.passed() == [0, 1, 2]
    assert held.next_window() is None  # "e" alone is less than a window
    held.end()
    assert held.next_window() == Window(0, 5, "abcde", is_last=True)
    assert held.passed() == [3, 4]
    assert held.next_window() is None


def test_an_answer_without_text_is_judged_as_well() -> None:
    held = Held[str](10, 0)
    held.push("the end", "")
    held.end()
    assert held.next_window() == Window(0, 0, "", is_last=True)
    assert held.passed() == ["the end"]


def test_an_answer_that_goes_on_is_judged_with_its_beginning() -> None:
    held = Held[str](3, 1, begun="ab")
    held.push("cde", "cde")
    assert held.next_window() == Window(1, 5, "bcde")
    assert held.passed() == ["cde"]
    held.push("end", "")
    held.end()
    assert held.next_window() == Window(0, 5, "abcde", is_last=True)


def test_what_needs_no_verdict_is_released_and_the_end_if_it_needs_none_either() -> None:
    held = Held[str](1 << 60, 0)
    held.push("a", "a")
    assert (held.n_held, held.release(), held.n_held) == (1, ["a"], 0)
    held.push("b", "b")
    held.push("end", "")
    held.end()
    assert held.release(but_end=True) == ["b"]
    assert held.next_window() == Window(0, 2, "ab", is_last=True)
    assert held.passed() == ["end"]


@pytest.mark.parametrize(("size", "overlap"), [(0, 1), (1, -1)])
def test_sizes_are_checked(size: int, overlap: int) -> None:
    with pytest.raises(BadValue, match="a window must be at least"):
        Held[str](size, overlap)
