"""Whose turn it is: priorities, and equal parts for the tenants of one priority.

Higher priorities go first. Among the tenants of one priority goes first for whom steps have run the fewest
tokens so far: the virtual token counters of Sheng et al. 2024 ("Fairness in Serving Large Language Models",
OSDI), charged with the tokens of every step as it runs them. A tenant that had nothing waiting does not
bring the credit of its idle time: its counter is lifted to that of the tenant picked last (the virtual time
of start-time fair queueing, Goyal et al. 1996). Requests of one tenant and priority keep the order of their
arrival.

Nothing starves: a request grows older, and `ageing` steps of age weigh as much as one priority. That makes
an order of all requests that never changes (their rank), before each of which stand finitely many, and every
eighth turn goes to the first of it.

Adding and picking take O(log n) of n waiting requests, and look at each priority that is in use. Only
integers; knows no block, no budget and no clock but the number of the step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from puna.engine.sequence import Sequence

Rank = tuple[int, int]  # step of arrival less what the priority is worth; number of the request

_RANK_TURN = 8  # of so many turns, one goes to the first in rank
_SLACK = 64  # entries of a heap that may be of no use any more, beside as many as are of use


@dataclass(slots=True, eq=False)
class Flow:
    """The sequences of one tenant at one priority."""

    priority: int
    tenant: str
    number: int
    counter: int = 0  # tokens that steps ran for it, and what it was lifted by
    n_live: int = 0  # sequences, waiting or running
    n_waiting: int = 0
    line: list[tuple[int, Sequence]] = field(default_factory=list)  # heap by arrival; may have left already
    is_due: bool = False  # it has an entry in its level's heap


@dataclass(slots=True, eq=False)
class _Level:
    """The flows of one priority."""

    clock: int = 0  # counter of the flow that was picked last
    n_live: int = 0  # sequences, waiting or running
    n_waiting: int = 0
    n_used: int = 0  # flows with any
    flows: dict[str, Flow] = field(default_factory=dict)
    due: list[tuple[int, int, Flow]] = field(default_factory=list)  # heap by counter; counters may be older

    def join(self, priority: int, tenant: str, number: int) -> Flow:
        """The flow that a new sequence belongs to."""
        flow = self.flows.get(tenant)
        if flow is None:
            if len(self.flows) > 2 * self.n_used + _SLACK:
                self._forget()
            flow = self.flows[tenant] = Flow(priority, tenant, number, self.clock)
        self.n_used += not flow.n_live
        self.n_live += 1
        flow.n_live += 1
        return flow

    def part(self, flow: Flow) -> None:
        flow.n_live -= 1
        self.n_live -= 1
        self.n_used -= not flow.n_live

    def _forget(self) -> None:
        """Drop flows that would begin anew as they ended."""
        kept = (f for f in self.flows.values() if f.n_live or f.is_due or f.counter > self.clock)
        self.flows = {flow.tenant: flow for flow in kept}


class FairQueue:
    """The waiting sequences of a scheduler, and the turns of those that are let in or prefilled."""

    def __init__(self, ageing: int) -> None:
        self._ageing = ageing
        self._waiting: set[Sequence] = set()
        self._levels: dict[int, _Level] = {}
        self._by_rank: list[tuple[Rank, Sequence]] = []  # heap; may have left already
        self.step = 0
        self._n_added = 0
        self._n_turns = 0
        self.n_flows = 0  # that wait

    def __len__(self) -> int:
        return len(self._waiting)

    def in_order(self) -> list[Sequence]:
        """The waiting ones by rank."""
        return sorted(self._waiting, key=lambda seq: seq.rank)

    def tick(self) -> None:
        """Another step begins."""
        self.step += 1

    def arrive(self, seq: Sequence) -> None:
        """A new sequence waits."""
        request = seq.request
        self._n_added += 1
        seq.rank = (self.step - self._ageing * request.priority, self._n_added)
        level = self._levels.setdefault(request.priority, _Level())
        seq.flow = level.join(request.priority, request.tenant, self._n_added)
        self.wait(seq)

    def wait(self, seq: Sequence) -> None:
        """`seq` waits, for the first time or again."""
        flow, level = seq.flow, self._levels[seq.flow.priority]
        if not flow.n_waiting:
            self.n_flows += 1
            flow.counter = max(flow.counter, level.clock)
        flow.n_waiting += 1
        level.n_waiting += 1
        self._waiting.add(seq)
        heappush(flow.line, (seq.rank[1], seq))
        heappush(self._by_rank, (seq.rank, seq))
        if not flow.is_due:
            flow.is_due = True
            heappush(level.due, (flow.counter, flow.number, flow))

    def stop_waiting(self, seq: Sequence) -> None:
        """`seq` was let in, or is cancelled."""
        flow = seq.flow
        self._waiting.remove(seq)
        flow.n_waiting -= 1
        self.n_flows -= not flow.n_waiting
        self._levels[flow.priority].n_waiting -= 1
        for heap, n_used in ((self._by_rank, len(self._waiting)), (flow.line, flow.n_waiting)):
            self._tidy(heap, n_used)

    def leave(self, seq: Sequence) -> None:
        """`seq` has ended."""
        level = self._levels[seq.flow.priority]
        level.part(seq.flow)
        if not level.n_live:
            del self._levels[seq.flow.priority]

    def next_of(self, running: Iterable[Sequence], *, with_waiting: bool) -> Sequence | None:
        """Whose turn it is among `running` ones and, if so asked, those that wait."""
        if self._is_rank_turn:
            first = self._first_in_rank() if with_waiting else None
            return min((*running, first) if first else running, key=lambda seq: seq.rank, default=None)
        first = self.first_in_turn() if with_waiting else None
        return min((*running, first) if first else running, key=_turn, default=None)

    def took_turn(self, seq: Sequence, *, counts: bool) -> None:
        """The turn of next_of() was taken. It `counts` if those that wait could have had it: while the first
        of them does not fit, its turn does not pass."""
        if not self._is_rank_turn:
            level = self._levels[seq.flow.priority]
            level.clock = max(level.clock, seq.flow.counter)
        self._n_turns += counts

    @property
    def _is_rank_turn(self) -> bool:
        return self._n_turns % _RANK_TURN == _RANK_TURN - 1

    def _first_in_rank(self) -> Sequence | None:
        heap = self._by_rank
        while heap and heap[0][1] not in self._waiting:
            heappop(heap)
        return heap[0][1] if heap else None

    def first_in_turn(self) -> Sequence | None:
        """Of those that wait: of the highest priority, the first of the flow with the smallest counter."""
        if not self._waiting:
            return None
        due = self._levels[max(p for p, level in self._levels.items() if level.n_waiting)].due
        while True:
            counter, _, flow = due[0]
            if not flow.n_waiting:
                heappop(due)
                flow.is_due = False
            elif counter != flow.counter:
                heapreplace(due, (flow.counter, flow.number, flow))
            else:
                return self._first_of(flow)

    def _first_of(self, flow: Flow) -> Sequence:
        while flow.line[0][1] not in self._waiting:
            heappop(flow.line)
        return flow.line[0][1]

    def _tidy(self, heap: list[tuple[Any, Sequence]], n_used: int) -> None:
        """Drop what is of no use, once it is most of the heap."""
        if len(heap) > 2 * n_used + _SLACK:
            heap[:] = [entry for entry in heap if entry[1] in self._waiting]
            heapify(heap)


def _turn(seq: Sequence) -> tuple[int, int, int]:
    return -seq.flow.priority, seq.flow.counter, seq.rank[1]
