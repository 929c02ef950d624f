"""The checks of a call with judges that a test holds: what is shown, whatever comes first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core import TokenLogprob, WorkFailed
from puna.safety.policy import Policy
from puna.safety.verdict import Turn, Verdict
from puna.server.generation import Piece
from puna.server.safety.conversation import Conversation
from puna.server.safety.screen import SafetyUnavailable, Screen

ASKED = (("user", "asked"),)


@dataclass
class Judge:
    """Says "unsafe" of texts with an "!", after as many turns of the event loop as it is told."""

    name: str = "judge"
    slow: list[int] = field(default_factory=list)
    seen: list[Sequence[Turn]] = field(default_factory=list)
    fails: bool = False
    hangs: bool = False

    async def judge(self, conversations: Sequence[Sequence[Turn]]) -> Sequence[Verdict]:
        self.seen += conversations
        for _ in range(self.slow.pop() if self.slow else 0):
            await asyncio.sleep(0)
        if self.hangs:
            await asyncio.sleep(60)
        if self.fails:
            raise WorkFailed("the judge is out")
        found = ["!" in turns[-1][1] for turns in conversations]
        return [Verdict(bad, 0.9 if bad else 0.1, ("hate",) if bad else ()) for bad in found]


def spell(token: int) -> bytes:
    """Tokens are bytes."""
    return bytes([token])


async def said(
    texts: Sequence[str], pauses: Sequence[int] = (), finish: Any = "stop"
) -> AsyncGenerator[Piece, None]:
    for i, text in enumerate(texts):
        for _ in range(pauses[i] if i < len(pauses) else 0):
            await asyncio.sleep(0)
        yield Piece(text)
    yield Piece(finish=finish)


def screened(
    policy: Policy, judge: Judge, texts: Sequence[str], pauses: Sequence[int] = (), **more: Any
) -> tuple[list[Piece], Screen, list[int]]:
    """What is shown of an answer, its checks, and which answers were ended."""
    ended: list[int] = []
    conversation = more.pop("conversation", Conversation(ASKED))
    both = ([judge] if policy.input else [], [judge] if policy.output else [])
    screen = Screen(policy, both, [conversation], [0], ended.append, spell)

    async def run() -> list[Piece]:
        return [piece async for piece in screen.watch(said(texts, pauses, **more))]

    return asyncio.run(run()), screen, ended


BOTH = Policy("p", input=("judge",), output=("judge",), window=4, overlap=2)


@given(
    st.lists(st.text("ab!", max_size=6), max_size=12),
    st.lists(st.integers(0, 3), max_size=12),
    st.lists(st.integers(0, 5), max_size=12),
    st.integers(1, 9),
    st.integers(0, 9),
)
def test_nothing_unsafe_is_shown(
    texts: list[str], pauses: list[int], slow: list[int], size: int, overlap: int
) -> None:
    policy = Policy("p", input=("judge",), output=("judge",), window=size, overlap=overlap)
    judge, whole = Judge(slow=slow), "".join(texts)
    pieces, screen, ended = screened(policy, judge, texts, pauses)
    shown = "".join(piece.text for piece in pieces)
    assert whole.startswith(shown)
    assert "!" not in shown
    assert [piece.finish for piece in pieces if piece.finish] == [
        "content_filter" if "!" in whole else "stop"
    ]
    assert pieces[-1].finish
    assert ended == ([0] if "!" in whole else [])
    audit = screen.audit("ok")
    assert audit.action == ("blocked" if "!" in whole else "passed")
    assert audit.n_checks == len(judge.seen)
    if "!" not in whole:
        assert shown == whole
        assert judge.seen[-1] == (*ASKED, ("assistant", whole))
        assert audit.n_withheld == 0


def test_what_is_asked_is_judged_while_the_answer_is_made_and_holds_all_of_it() -> None:
    judge = Judge(slow=[50])
    unsafe = Conversation((("user", "a!"),))
    pieces, screen, ended = screened(BOTH, judge, ["ab", "cd", "ef"], conversation=unsafe)
    assert pieces == [Piece(finish="content_filter")]
    assert ended == [0]
    audit = screen.audit("ok")
    assert (audit.action, audit.stage, audit.categories, audit.score) == ("blocked", "input", "hate", 0.9)
    assert judge.seen == [(("user", "a!"),)]


def test_an_answer_that_was_begun_is_judged_with_its_beginning() -> None:
    pieces, _, _ = screened(BOTH, Judge(), ["ab"], conversation=Conversation(ASKED, begun="a!"))
    assert pieces == [Piece(finish="content_filter")]


@given(st.text("ab!é", max_size=12), st.lists(st.integers(0, 9), max_size=30), st.integers(1, 5))
def test_tokens_are_shown_when_what_they_spell_has_passed(text: str, late: list[int], size: int) -> None:
    """Log-probabilities come with their tokens, texts as much later as they like."""
    spelled = text.encode()
    pieces, shown = [], 0
    for i, byte in enumerate(spelled):
        n = len(spelled[: i + 1].decode("utf-8", "ignore"))
        ready = max(shown, n - (late[i] if i < len(late) else 0))
        pieces.append(Piece(text[shown:ready], logprobs=[TokenLogprob(byte, -1.0)]))
        shown = ready
    pieces.append(Piece(text[shown:], finish="stop"))

    async def made() -> AsyncGenerator[Piece, None]:
        for piece in pieces:
            yield piece

    policy = Policy("p", output=("judge",), window=size, overlap=0)
    screen = Screen(policy, ([], [Judge()]), [Conversation(ASKED)], [0], lambda i: None, spell)

    async def run() -> list[Piece]:
        return [piece async for piece in screen.watch(made())]

    found = asyncio.run(run())
    tokens = bytes(item.token_id for piece in found for item in piece.logprobs)
    assert spelled.startswith(tokens)
    assert b"!" not in tokens
    assert text.startswith("".join(piece.text for piece in found))
    assert found[-1].finish == ("content_filter" if "!" in text else "stop")
    if "!" not in text:
        assert tokens == spelled


def test_without_judges_of_answers_they_go_out_as_they_come_once_the_prompt_has_passed() -> None:
    policy = Policy("p", input=("judge",))
    judge = Judge()
    pieces, screen, _ = screened(policy, judge, ["a!", "b"])
    assert [piece.text for piece in pieces] == ["a!", "b", ""]
    assert len(judge.seen) == 1
    assert screen.audit("ok").action == "passed"


def test_a_report_holds_nothing_but_the_end() -> None:
    policy = Policy("p", input=("judge",), output=("judge",), action="report")
    judge = Judge(slow=[0, 40])
    unsafe = Conversation((("user", "!"),))
    pieces, screen, ended = screened(policy, judge, ["a!", "b"], conversation=unsafe)
    assert [piece.text for piece in pieces] == ["a!", "b", ""]
    assert pieces[-1].finish == "stop"
    assert not ended
    audit = screen.audit("ok")
    assert (audit.action, audit.stage, audit.n_checks) == ("reported", "input", 2)


@pytest.mark.parametrize("judge", [Judge(fails=True), Judge(hangs=True)])
def test_what_cannot_be_judged_is_refused_unless_the_policy_lets_it_pass(judge: Judge) -> None:
    closed = Policy("p", input=("judge",), timeout=0.05)
    with pytest.raises(SafetyUnavailable, match="what is asked could not be checked for safety"):
        screened(closed, judge, ["a"])
    open_ = Policy("p", input=("judge",), timeout=0.05, on_error="pass")
    pieces, screen, _ = screened(open_, judge, ["a"])
    assert [piece.text for piece in pieces] == ["a", ""]
    audit = screen.audit("ok")
    assert audit.action == "unchecked"
    assert audit.error == ("the judge is out" if judge.fails else "judge gave no verdict within 0.05 seconds")


def test_one_judge_that_is_out_does_not_hide_what_another_one_finds() -> None:
    policy = Policy("p", input=("a", "b"), on_error="pass")
    unsafe = Conversation((("user", "!"),))
    screen = Screen(policy, ([Judge(fails=True), Judge()], []), [unsafe], [0], lambda i: None, spell)

    async def run() -> list[Piece]:
        return [piece async for piece in screen.watch(said(["a"]))]

    assert asyncio.run(run()) == [Piece(finish="content_filter")]


def test_errors_of_the_answer_and_of_judges_that_are_broken_end_the_call() -> None:
    async def breaks() -> AsyncGenerator[Piece, None]:
        yield Piece("ab")
        raise WorkFailed("no")

    async def run(screen: Screen, pieces: AsyncGenerator[Piece, None]) -> None:
        async for _ in screen.watch(pieces):
            pass

    screen = Screen(BOTH, ([Judge()], [Judge()]), [Conversation(ASKED)], [0], lambda i: None, spell)
    with pytest.raises(WorkFailed, match="no"):
        asyncio.run(run(screen, breaks()))
    assert screen.audit("error").action == "unfinished"

    class Broken(Judge):
        async def judge(self, conversations: Sequence[Sequence[Turn]]) -> Sequence[Verdict]:
            raise KeyError("a bug")

    screen = Screen(BOTH, ([Broken()], []), [Conversation(ASKED)], [0], lambda i: None, spell)
    with pytest.raises(KeyError):
        asyncio.run(run(screen, said(["a"])))


def test_a_call_that_was_cut_off_ends_without_a_verdict() -> None:
    judge = Judge(hangs=True)
    pieces, screen, _ = screened(BOTH, judge, ["a"], finish="cancelled")
    assert [piece.finish for piece in pieces] == ["cancelled"]
    assert screen.audit("cancelled").action == "unfinished"


def test_thresholds_and_categories_decide() -> None:
    for more, action in (
        ({"threshold": 0.95}, "passed"),
        ({"threshold": 0.05}, "blocked"),
        ({"categories": ("self-harm",)}, "passed"),
        ({"categories": ("hate",)}, "blocked"),
    ):
        policy = Policy("p", output=("judge",), **more)  # type: ignore[arg-type]
        _, screen, _ = screened(policy, Judge(), ["a!"])
        assert screen.audit("ok").action == action, more
