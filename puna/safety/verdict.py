"""What is judged, and what a judge says of it: the contract of everything that classifies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Content = str | Sequence[Mapping[str, Any]]  # a text, or parts that are texts and images
Turn = tuple[str, Content]  # who said what: "user" or "assistant"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of the last turn of a conversation."""

    is_unsafe: bool
    score: float  # probability of "unsafe", from 0 to 1; either of them where a judge knows only yes and no
    categories: tuple[str, ...] = ()  # names as words, such as suicide-self-harm; none where it is safe


class Classifier(Protocol):
    """Whatever tells unsafe texts from safe ones: a guard model, an encoder, patterns, a service."""

    @property
    def name(self) -> str:
        """What reports and audits call it."""
        ...

    async def judge(self, conversations: Sequence[Sequence[Turn]]) -> Sequence[Verdict]:
        """What it says of the last turn of each, in their order.

        Raises PunaError where it cannot tell: what could not be judged is never called safe.
        """
        ...
