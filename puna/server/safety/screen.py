"""The checks of one call: what is asked is judged while the answer is being made, what is answered before it
is shown.

Nothing of an answer goes out until its prompt has passed, and then window by window (safety/windows.py). What
is found ends the answer with the finish "content_filter": its tokens are cancelled within a step. With the
action "report" nothing is held back, the audit alone says what was found.
"""

from __future__ import annotations

import asyncio
from codecs import IncrementalDecoder, getincrementaldecoder
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from time import perf_counter

from puna.core import BadInput, PunaError
from puna.safety.policy import Policy
from puna.safety.verdict import Classifier, Turn, Verdict
from puna.safety.windows import Held
from puna.server.generation import Piece
from puna.server.safety.conversation import Conversation, called
from puna.server.tenants.audit import Audit

_MOST_ERROR = 300
_MOST_NAMES = 500


class SafetyUnavailable(PunaError):
    """HTTP 503: something could not be judged, and its policy lets nothing unjudged pass."""


@dataclass(slots=True)
class _Choice:
    """One answer: what of it waits for a verdict."""

    prompt: int  # which prompt it answers
    held: Held[Piece]
    is_over: bool = False  # its end has been shown, or it was blocked
    decoder: IncrementalDecoder | None = None  # of its tokens, where their log-probabilities are shown


@dataclass(slots=True)
class Findings:
    """What has been found so far."""

    score: float = 0.0
    categories: dict[str, None] = field(default_factory=dict)  # in the order in which they were named
    stage: str = ""
    error: str = ""
    n_checks: int = 0
    judge_s: float = 0.0


Found = Piece | Verdict | BaseException | None
_Event = tuple[str, int, Found]  # what happened, to which answer (or prompt), and what came of it


class Screen:
    """For one call, once."""

    def __init__(
        self,
        policy: Policy,
        judges: tuple[Sequence[Classifier], Sequence[Classifier]],
        conversations: Sequence[Conversation],
        prompt_of: Sequence[int],
        block: Callable[[int], None],
        spell: Callable[[int], bytes],
    ) -> None:
        """`judges` of what is asked and what is answered; `prompt_of` has the prompt of each answer, `block`
        ends the making of one, `spell` says what a token adds to a text."""
        self.policy = policy
        self.findings = Findings()
        self._input, self._output = judges
        self._conversations = conversations
        self._block = block
        self._spell = spell
        self._holds = policy.action == "block"
        size = policy.window if self._holds else 1 << 60
        self._choices = [
            _Choice(number, Held(size, policy.overlap, begun=conversations[number].begun))
            for number in prompt_of
        ]
        self._passed = [not self._input for _ in conversations]
        self._events: asyncio.Queue[_Event] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()

    async def watch(self, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
        """Those of the pieces that may be shown, as soon as they may.

        Raises SafetyUnavailable, and what iterating raises.
        """
        self._start(self._pump(pieces))
        for number, conversation in enumerate(self._conversations):
            if not self._passed[number]:
                self._start(self._judge("input", number, self._input, conversation.asked()))
        try:
            while not all(choice.is_over for choice in self._choices):
                for piece in self._take(*await self._events.get()):
                    yield piece
        finally:
            for task in self._tasks:
                task.cancel()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Whatever a task failed on ends the call."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._events.put_nowait(("error", 0, error))

    async def _pump(self, made: AsyncGenerator[Piece, None]) -> None:
        async with aclosing(made) as pieces:
            async for piece in pieces:
                self._events.put_nowait(("piece", piece.choice, piece))

    async def _judge(
        self, what: str, number: int, judges: Sequence[Classifier], asked: Sequence[Sequence[Turn]]
    ) -> None:
        began_at = perf_counter()
        answers = await asyncio.gather(*(self._verdicts(judge, asked) for judge in judges))
        found = [one for answer in answers for one in answer]
        self.findings.n_checks += len(asked)
        self.findings.judge_s += perf_counter() - began_at
        against = self._against([one for one in found if isinstance(one, Verdict)])
        failed = next((one for one in found if isinstance(one, PunaError)), None)
        self._events.put_nowait((what, number, against or failed))

    async def _verdicts(
        self, judge: Classifier, asked: Sequence[Sequence[Turn]]
    ) -> Sequence[Verdict | PunaError]:
        try:
            async with asyncio.timeout(self.policy.timeout):
                return await judge.judge(asked)
        except TimeoutError:
            late = f"{judge.name} gave no verdict within {self.policy.timeout:g} seconds"
            return [SafetyUnavailable(late)]
        except PunaError as error:
            return [error]

    def _against(self, verdicts: Sequence[Verdict]) -> Verdict | None:
        """What stands against a text; None where nothing does."""
        self.findings.score = max([self.findings.score, *(verdict.score for verdict in verdicts)])
        against = [verdict for verdict in verdicts if self.policy.counts(verdict)]
        names = dict.fromkeys(name for verdict in against for name in verdict.categories)
        return Verdict(True, max(v.score for v in against), tuple(names)) if against else None

    def _take(self, what: str, number: int, found: Found) -> list[Piece]:
        """One thing that happened -> what may be shown now."""
        if what == "error":
            assert isinstance(found, BaseException)
            raise found
        if isinstance(found, Piece):
            return self._take_piece(self._choices[number], found)
        if isinstance(found, BaseException):
            self._unjudged(what, found)
            found = None
        if what == "input":
            return self._take_input(number, found)
        return self._take_window(number, found)

    def _take_piece(self, choice: _Choice, piece: Piece) -> list[Piece]:
        if choice.is_over:
            return []
        if piece.finish == "cancelled":  # nobody reads it any more
            choice.is_over = True
            return [piece]
        choice.held.push(piece, self._judged_text(choice, piece))
        if piece.finish is not None:
            choice.held.end()
        return self._advance(piece.choice)

    def _judged_text(self, choice: _Choice, piece: Piece) -> str:
        """What a piece tells: log-probabilities name tokens whose text may come later, or never."""
        if piece.logprobs and choice.decoder is None:
            choice.decoder = getincrementaldecoder("utf-8")("replace")
        if choice.decoder is not None:
            return choice.decoder.decode(b"".join(self._spell(item.token_id) for item in piece.logprobs))
        return piece.text + "".join(called(call.name, call.arguments_json) for call in piece.calls)

    def _take_input(self, number: int, found: Verdict | None) -> list[Piece]:
        self._passed[number] = True
        shown = []
        if found is not None:
            self._note("input", found)
        for i, choice in enumerate(self._choices):
            if choice.prompt == number:
                shown += self._advance(i) if found is None or not self._holds else self._blocked(i)
        return shown

    def _take_window(self, number: int, found: Verdict | None) -> list[Piece]:
        choice = self._choices[number]
        if choice.is_over:
            return []
        if found is not None:
            self._note("output", found)
            if self._holds:
                return self._blocked(number)
        shown = choice.held.passed()
        choice.is_over = any(piece.finish is not None for piece in shown)
        return shown + self._advance(number)

    def _advance(self, number: int) -> list[Piece]:
        """What of an answer may be shown, and the next window of it to its judges."""
        choice = self._choices[number]
        if choice.is_over:
            return []
        shown: list[Piece] = []
        has_passed = self._passed[choice.prompt]
        if not self._holds or (has_passed and not self._output):
            shown = choice.held.release(but_end=bool(self._output) or not has_passed)
            choice.is_over = any(piece.finish is not None for piece in shown)
        if has_passed and self._output and (window := choice.held.next_window()):
            turns = (*self._conversations[choice.prompt].turns, ("assistant", window.text))
            self._start(self._judge("window", number, self._output, [turns]))
        return shown

    def _blocked(self, number: int) -> list[Piece]:
        """The answer ends here."""
        choice = self._choices[number]
        if choice.is_over:
            return []
        choice.is_over = True
        self._block(number)
        return [Piece(finish="content_filter", choice=number)]

    def _note(self, stage: str, found: Verdict) -> None:
        self.findings.stage = self.findings.stage or stage
        self.findings.categories |= dict.fromkeys(found.categories)

    def _unjudged(self, what: str, error: BaseException) -> None:
        """Raises SafetyUnavailable where nothing unjudged may pass."""
        self.findings.error = self.findings.error or str(error)
        if self._holds and self.policy.on_error == "block":
            side = "what is asked" if what == "input" else "the answer"
            why = (
                f": {error}"
                if isinstance(error, BadInput)
                else ", so nothing is shown; try again in a moment"
            )
            raise SafetyUnavailable(f"{side} could not be checked for safety{why}")

    def audit(self, status: str) -> Audit:
        """What came of it, of a call that ended with that status."""
        found = self.findings
        stage = found.stage
        if stage:
            action = "blocked" if self._holds else "reported"
        elif found.error:
            is_closed = self._holds and self.policy.on_error == "block"
            action = "failed" if is_closed else "unchecked"
        else:
            action = "passed" if status == "ok" else "unfinished"
        names = {judge.name: None for judge in (*self._input, *self._output)}
        return Audit(
            policy=self.policy.name,
            judges=_listed(names),
            action=action,
            stage=stage,
            categories=_listed(found.categories),
            score=float(found.score),
            n_checks=found.n_checks,
            judge_s=found.judge_s,
            n_withheld=sum(choice.held.n_held for choice in self._choices),
            error="".join(c if c.isprintable() else " " for c in found.error)[:_MOST_ERROR],
        )


def _listed(names: dict[str, None]) -> str:
    """As many of the names as a row has room for."""
    found = ""
    for name in names:
        longer = f"{found},{name}" if found else name
        if len(longer) > _MOST_NAMES:
            break
        found = longer
    return found
