"""The answer of a response, as events in OpenAI's order; the whole answer is what they add up to.

https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from puna.core import TokenLogprob
from puna.server.calls import Call
from puna.server.generation import Finish, Piece
from puna.server.openai import wire
from puna.server.openai.responses.items import Item, new_id
from puna.text.tools import ToolCall

Event = dict[str, Any]  # with its type
INCOMPLETE = {
    "length": "max_output_tokens",
    "content_filter": "content_filter",
}  # finishes, and their reasons


class Writer:
    """Turns the pieces of one answer into events and items."""

    def __init__(self, call: Call, head: dict[str, Any], *, has_logprobs: bool) -> None:
        self.output: list[Item] = []  # items that are whole
        self._call = call
        self._head = head
        self._has_logprobs = has_logprobs
        self._message: Item | None = None  # that is being written
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._pending: list[TokenLogprob] = []  # of tokens whose text may yet come
        self._n_events = 0
        self._n_calls = 0

    def event(self, type: str, **fields: Any) -> Event:
        number = self._n_events
        self._n_events += 1
        return {"type": f"response.{type}", "sequence_number": number, **fields}

    def begin(self) -> Iterator[Event]:
        yield self.event("created", response=self._head)
        yield self.event("in_progress", response=self._head)

    def take(self, piece: Piece) -> Iterator[Event]:
        if self._has_logprobs:
            self._pending += piece.logprobs
        if piece.text and self._message is None:
            yield from self._open()
        if self._message is not None and (piece.text or (self._pending and not piece.calls)):
            yield self._delta(piece.text)
        for call in piece.calls:
            yield from self._close("completed")
            yield from self._tool_call(call)

    def end(self, finish: Finish) -> Iterator[Event]:
        """After the last piece: an answer without a word is an empty message."""
        if not self.output and self._message is None:
            yield from self._open()
        yield from self._close("incomplete" if finish in INCOMPLETE else "completed")

    def abort(self) -> None:
        """The answer broke off: what there is of it is kept as it is."""
        for _ in self._close("incomplete"):
            pass

    def _part(self, text: str) -> Item:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": [*self._logprobs]}

    def _open(self) -> Iterator[Event]:
        self._texts, self._logprobs = [], []
        self._message = {
            "id": new_id("msg"),
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        yield self.event("output_item.added", output_index=len(self.output), item={**self._message})
        yield self.event("content_part.added", **self._place(), part=self._part(""))

    def _place(self) -> dict[str, Any]:
        assert self._message is not None
        return {"item_id": self._message["id"], "output_index": len(self.output), "content_index": 0}

    def _delta(self, text: str) -> Event:
        logprobs: list[dict[str, Any]] = []
        if self._pending:
            logprobs = wire.chat_logprobs(self._call.served.tokenizer, self._pending)["content"]
            self._pending = []
        self._texts.append(text)
        self._logprobs += logprobs
        return self.event("output_text.delta", **self._place(), delta=text, logprobs=logprobs)

    def _close(self, status: str) -> Iterator[Event]:
        self._pending = []
        if self._message is None:
            return
        part = self._part("".join(self._texts))
        item = {**self._message, "status": status, "content": [part]}
        place = self._place()
        self._message = None
        self.output.append(item)
        yield self.event("output_text.done", **place, text=part["text"], logprobs=part["logprobs"])
        yield self.event("content_part.done", **place, part=part)
        yield self.event("output_item.done", output_index=place["output_index"], item=item)

    def _tool_call(self, call: ToolCall) -> Iterator[Event]:
        made = wire.tool_call(call, self._n_calls, self._call.id)
        self._n_calls += 1
        index, arguments = len(self.output), made["function"]["arguments"]
        item = {
            "id": new_id("fc"),
            "type": "function_call",
            "status": "completed",
            "call_id": made["id"],
            "name": made["function"]["name"],
            "arguments": arguments,
        }
        self.output.append(item)
        place = {"item_id": item["id"], "output_index": index}
        begun = {**item, "status": "in_progress", "arguments": ""}
        yield self.event("output_item.added", output_index=index, item=begun)
        yield self.event("function_call_arguments.delta", **place, delta=arguments)
        yield self.event("function_call_arguments.done", **place, name=item["name"], arguments=arguments)
        yield self.event("output_item.done", output_index=index, item=item)
