"""What safety checks found in one call: a row beside that of its usage, written together with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from puna.core import BadValue

ACTIONS = (
    "passed",  # nothing was found
    "blocked",  # something was, and the answer ended there
    "reported",  # something was, and the policy lets it pass
    "unchecked",  # it could not be judged, and the policy lets that pass
    "failed",  # it could not be judged, so that the call got an error
    "unfinished",  # the call ended before everything was judged
)
STAGES = ("", "input", "output")
_LONGEST = {"policy": 100, "judges": 500, "categories": 500, "error": 300}


@dataclass(frozen=True, slots=True)
class Audit:
    """Raises BadValue for what no database would take."""

    policy: str
    judges: str  # who was asked, separated by commas
    action: str  # one of ACTIONS
    stage: str  # where what decided was found; empty where nothing was
    categories: str  # of what was found, separated by commas
    score: float  # the highest that a judge gave
    n_checks: int  # verdicts
    judge_s: float  # seconds of all of them
    n_withheld: int  # characters of answers that were made and not shown
    error: str = ""  # why something could not be judged

    def __post_init__(self) -> None:
        for name, longest in _LONGEST.items():
            text = getattr(self, name)
            is_bad = "\0" in text or any("\ud800" <= c <= "\udfff" for c in text)
            if is_bad or len(text) > longest:
                raise BadValue(f"{name} must be a text of at most {longest} letters, got {text!r:.80}")
        if self.action not in ACTIONS or self.stage not in STAGES:
            raise BadValue(f"an audit has an action and a stage, got {self.action!r} and {self.stage!r}")
        if not (isfinite(self.score) and isfinite(self.judge_s)):
            raise BadValue(f"score and seconds must be finite, got {self.score} and {self.judge_s}")

    def to_columns(self, request_id: str) -> dict[str, Any]:
        return {"request_id": request_id, **asdict(self)}
