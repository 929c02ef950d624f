"""One response from its request to its storage. What is stored is durable before the last event goes out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request as HttpRequest

from puna.core import PunaError
from puna.server.calls import Call
from puna.server.chats import begin_chat
from puna.server.errors import ApiError, from_puna
from puna.server.generation import Finish
from puna.server.openai.responses.context import Reading, read
from puna.server.openai.responses.events import INCOMPLETE, Event, Writer
from puna.server.openai.responses.request import ResponseRequest
from puna.server.openai.wire import token_counts
from puna.server.service import Service
from puna.server.storage import conversations, responses

_log = logging.getLogger(__name__)


class Making:
    """A response that is being made. Its answer is iterated once."""

    def __init__(self, service: Service, call: Call, body: ResponseRequest, reading: Reading) -> None:
        self.call = call
        self.is_cancelled = False  # by a request to do so
        self.head = head(call, body)
        self._database = service.accounts.database
        self._body = body
        self._reading = reading
        self._writer = Writer(call, self.head, has_logprobs=body.wants_logprobs)

    @property
    def id(self) -> str:
        return str(self.head["id"])

    async def events(self) -> AsyncIterator[Event]:
        """All events; raises ApiError where the answer breaks off."""
        writer = self._writer
        finish: Finish = "stop"
        for event in writer.begin():
            yield event
        async for piece in self.call.pieces():
            for event in writer.take(piece):
                yield event
            finish = piece.finish or finish
        for event in writer.end(finish):
            yield event
        response = self._ended(finish)
        try:
            await asyncio.to_thread(self._keep, response)
        except PunaError as error:
            raise from_puna(error) from error
        yield writer.event(response["status"], response=response)

    def failed(self, error: ApiError) -> Event:
        """The last event of an answer that broke off."""
        return self._writer.event("failed", response=self._broken(error))

    def _ended(self, finish: Finish) -> dict[str, Any]:
        reason = INCOMPLETE.get(finish)
        return {
            **self.head,
            "status": "incomplete" if reason else "completed",
            "completed_at": None if reason else int(datetime.now(UTC).timestamp()),
            "incomplete_details": {"reason": reason} if reason else None,
            "output": self._writer.output,
            "usage": usage(self.call),
        }

    def _broken(self, error: ApiError) -> dict[str, Any]:
        self._writer.abort()
        found = {**self.head, "output": self._writer.output, "usage": usage(self.call)}
        if self.is_cancelled:
            return {**found, "status": "cancelled"}
        return {
            **found,
            "status": "failed",
            "error": {"code": error.code or error.kind, "message": error.message},
        }

    def _keep(self, response: dict[str, Any]) -> None:
        body, account, given = self._body, self.call.account, self._reading.given
        is_new = True
        with self._database.write() as connection:
            if body.background:
                responses.finish(connection, response, len(given))
            elif body.store is not False:
                created = datetime.fromtimestamp(self.call.created, UTC)
                key_id = account.key_id or ""
                is_new = responses.save(connection, account.tenant, key_id, response, created, given)
            if is_new and body.conversation_id is not None:
                items = [*given, *response["output"]]
                conversations.add(connection, account.tenant, body.conversation_id, items, is_limited=False)

    def keep_begun(self) -> None:
        """Keep a background response before it is made, for those who ask for it."""
        account, created = self.call.account, datetime.fromtimestamp(self.call.created, UTC)
        with self._database.write() as connection:
            responses.save(
                connection, account.tenant, account.key_id or "", self.head, created, self._reading.given
            )

    async def run(self) -> None:
        """Make a background response, whatever becomes of it."""
        try:
            async for _ in self.events():
                pass
        except ApiError as error:
            try:
                await asyncio.to_thread(self._keep_broken, error)
            except PunaError as worse:  # it will be told as failed once its time is up
                _log.error("what became of %s could not be kept: %s", self.id, worse)

    def _keep_broken(self, error: ApiError) -> None:
        with self._database.write() as connection:
            responses.finish(connection, self._broken(error), len(self._reading.given))


async def begin(service: Service, body: ResponseRequest, http: HttpRequest) -> Making:
    """Start what a request asks for. Raises ApiError."""
    account = service.authenticate(http)
    reading = await read(service, account, body)

    try:
        call = await begin_chat(service, http, "responses", body.chat(reading.turns))
    except ApiError as error:
        if error.param == "max_tokens":
            error.param = "max_output_tokens"
        raise
    return Making(service, call, body, reading)


def usage(call: Call) -> dict[str, Any]:
    return token_counts(call.n_prompt, call.n_cached, call.n_output)


def head(call: Call, body: ResponseRequest) -> dict[str, Any]:
    """The response before anything of it is made."""
    params = call.generations[0].request.params
    choice = body.tool_choice
    conversation = body.conversation_id
    return {
        "id": f"resp_{call.id}",
        "object": "response",
        "created_at": call.created,
        "completed_at": None,
        "status": "in_progress",
        "background": bool(body.background),
        "conversation": None if conversation is None else {"id": conversation},
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "model": call.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": call.tier,
        "store": body.store is not False,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "text": {"format": _format(body)},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump() if choice else "auto",
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "truncation": "disabled",
        "usage": None,
        "metadata": body.metadata or {},
    }


def _format(body: ResponseRequest) -> dict[str, Any]:
    held = body.text.format if body.text else None
    if held is None:
        return {"type": "text"}
    found = held.model_dump(by_alias=True)
    if found["type"] == "json_schema":
        return {**found, "description": None, "strict": bool(found["strict"])}
    return found
