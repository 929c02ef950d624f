from __future__ import annotations

from array import array
from random import Random

from puna.engine.speculate import Guesser


def tokens(*values: int) -> array[int]:
    return array("i", values)


def test_continues_as_the_last_time() -> None:
    assert Guesser().guess(tokens(1, 2, 3, 4, 5, 6, 1, 2, 3), 8) == tokens(4, 5)
    assert Guesser().guess(tokens(1, 2, 3, 4, 5, 6, 1, 2, 3), 1) == tokens(4)
    assert Guesser().guess(tokens(1, 2, 3, 9, 1, 2, 3, 4, 1, 2, 3), 8) == tokens(
        4, 1
    )  # the latest occurrence


def test_has_no_guess_for_the_new() -> None:
    for known in [(), (1,), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4, 2, 3)]:
        assert not Guesser().guess(tokens(*known), 8)


def test_repetition_goes_on_beyond_what_is_there() -> None:
    guesser = Guesser()
    text = tokens(7, 5, 5, 5, 5)
    assert guesser.guess(text, 8) == tokens(5, 5)
    guesser.pace.learn(2, 2)
    assert guesser.guess(text, 8) == tokens(5, 5, 5, 5)
    guesser.pace.learn(4, 4)
    guesser.pace.learn(8, 8)
    assert guesser.guess(text, 100) == tokens(*[5] * 8)
    assert Guesser().guess(tokens(1, 2, 1, 2, 1, 2), 8) == tokens(1, 2)


def test_guesses_shorten_to_what_held_and_pause_when_they_fail() -> None:
    guesser, text = Guesser(), tokens(1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3)
    guesser.pace.learn(8, 8)
    guesser.pace.learn(4, 2)
    assert guesser.guess(text, 8) == tokens(4, 5, 6)
    pauses = []
    for _ in range(9):
        guesser.pace.learn(2, 0)
        n = 0
        while not guesser.guess(text, 8):
            n += 1
        pauses.append(n)
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 64, 64]
    guesser.pace.learn(1, 1)
    guesser.pace.learn(2, 0)
    assert not guesser.guess(text, 8)
    assert guesser.guess(text, 8)


def test_index_grown_token_by_token_equals_one_built_at_once() -> None:
    rng = Random(0)
    for _ in range(200):
        text = array("i", [rng.randrange(3) for _ in range(40)])
        grown = Guesser()
        for n in range(41):
            assert grown.guess(text[:n], 8) == Guesser().guess(text[:n], 8) == slow_guess(text[:n])


def slow_guess(text: array[int]) -> array[int]:
    for start in range(len(text) - 1, 2, -1):
        if text[start - 3 : start] == text[-3:]:
            period = text[start:]
            return array("i", [period[i % len(period)] for i in range(2)])
    return tokens()
