"""What came back for one request: of a stream the time of each piece of text, its usage, how it ended."""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass, field
from typing import Any

from puna.loadtest.http import EventParser, Malformed, ResponseParser
from puna.loadtest.stats import Outcome

_MOST_BODY = 1 << 20  # bytes kept of an answer that is no event stream
# parts of a chat delta that tokens go to; vLLM says `reasoning` for what llama.cpp calls reasoning_content
_TEXTS = ("content", "reasoning_content", "reasoning", "tool_calls", "refusal")


@dataclass(slots=True)
class Exchange:
    """Takes what a connection received; `fill` tells an outcome about it."""

    response: ResponseParser = field(default_factory=ResponseParser)
    events: EventParser = field(default_factory=EventParser)
    body: bytearray = field(default_factory=bytearray)  # of a response that is no event stream
    deltas: array[float] = field(default_factory=lambda: array("d"))  # of the loop's clock
    usage: dict[str, Any] | None = None
    finish_reason: str | None = None
    said_done: bool = False  # the stream ended with [DONE]
    failure: str | None = None  # an error event's text

    def take(self, data: bytes, now: float) -> None:
        """Take what arrived at `now`. Raises Malformed."""
        for piece in self.response.feed(data):
            if not self.is_stream:
                self.body += piece[: _MOST_BODY - len(self.body)]
                continue
            for event in self.events.feed(piece):
                self._event(event, now)

    @property
    def is_stream(self) -> bool:
        kind = self.response.headers.get("content-type", "")
        return self.response.status == 200 and kind.lower().startswith("text/event-stream")

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def _event(self, data: bytes, now: float) -> None:
        if not data:
            return
        if data == b"[DONE]":
            self.said_done = True
            return
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            raise Malformed(f"expected JSON in an event, found {data[:60]!r}") from None
        if not isinstance(event, dict):
            raise Malformed(f"expected an object in an event, found {data[:60]!r}")
        if event.get("error"):
            self.failure = json.dumps(event["error"])[:300]
        if isinstance(event.get("usage"), dict):
            self.usage = event["usage"]
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return
        if isinstance(choice.get("finish_reason"), str):
            self.finish_reason = choice["finish_reason"]
        delta = choice.get("delta")
        if choice.get("text") or (isinstance(delta, dict) and any(map(delta.get, _TEXTS))):
            self.deltas.append(now)

    def fill(self, outcome: Outcome, start: float) -> None:
        """Tell the outcome what came, and what was wrong with it if nothing was known yet."""
        outcome.deltas = array("d", (at - start for at in self.deltas))
        outcome.finish_reason = self.finish_reason
        usage = self.usage or {}
        outcome.prompt_tokens = _count(usage.get("prompt_tokens"))
        outcome.output_tokens = _count(usage.get("completion_tokens"))
        details = usage.get("prompt_tokens_details")
        outcome.cached_tokens = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
        if outcome.error is None and (wrong := self._wrong()):
            outcome.error, outcome.detail = wrong

    def _wrong(self) -> tuple[str, str] | None:
        """Kind and text of what is wrong with a response that came whole."""
        if self.response.status != 200:
            return f"status_{self.response.status}", self.text[:300]
        if not self.is_stream:
            return "garbage", f"expected an event stream, found {self.text[:80]!r}"
        if self.failure is not None:
            return "stream_error", self.failure
        if not (self.said_done or self.finish_reason):
            return "broken_stream", "the stream ended without [DONE] or a finish reason"
        return None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
