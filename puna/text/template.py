"""Chat templates: the Jinja programs that model files carry, rendered beside this process (rendering.py).

What a template may use was fixed by transformers (apply_chat_template); files are written against it. They
are programs of strangers: one that takes too long, or too much memory, ends the process that renders it, and
the request that asked for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from functools import cache
from typing import Any

from puna.core import BadFile, BadInput, PunaError
from puna.text.confined import Confined

LONGEST_SOURCE = 1 << 20  # characters
_SECONDS = 1  # of CPU time; the system counts whole ones, so up to twice that
_MEMORY = 64 << 20  # bytes, and _MORE for each byte of the conversation
_MORE = 32
_REMEDY = "use puna run --raw, or a file with a good template"
# A conversation of this many bytes is small. Templates of the family render one in some milliseconds; one
# that takes longer than the second number of seconds is at fault itself, whoever sent the conversation.
_SMALL = 1 << 16
_SMALL_SECONDS = 0.1


@cache
def _renderer(is_small: bool) -> Confined:
    """Large conversations have a process of their own: nobody with a small one waits for them."""
    return Confined("puna.text.rendering", [_SECONDS, _MEMORY, _MORE])


class ChatTemplate:
    """A template. Raises BadFile where its source is too long."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._fault: str | None = None  # why it is not rendered any more
        if len(source) > LONGEST_SOURCE:
            raise BadFile(
                f"the file's chat template must have {LONGEST_SOURCE} characters at most, found "
                f"{len(source)}; {_REMEDY}"
            )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        date: date | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for `messages`; with `add_generation_prompt`, up to where the answer begins.

        `date` is what the template learns when it asks for today's; None is now. `variables` are further ones
        that the template knows. Everything has to be plain data (as JSON has it). Raises BadInput where the
        template refuses the messages or fails on them, or takes too long for so many; BadFile where it is no
        Jinja, or takes too long for any.
        """
        if self._fault is not None:
            raise BadFile(self._fault)
        known = {
            **(variables or {}),
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        today = (date or datetime.now()).isoformat()
        return self._ask({"source": self._source, "variables": known, "today": today})

    def _ask(self, question: Mapping[str, Any]) -> str:
        text = json.dumps(question)
        is_small = len(text) - len(self._source) <= _SMALL
        answer = _renderer(is_small).ask(text)
        if answer is None:
            raise self._too_much(is_small)
        if "syntax" in answer:
            raise BadFile(
                f"the file's chat template must be Jinja, line {answer['line']} is not: {answer['syntax']}; "
                f"{_REMEDY}"
            )
        if "refused" in answer:
            raise BadInput(
                f"the model's chat template cannot take these messages: {answer['refused']}; change them, or "
                "use puna run --raw"
            )
        if is_small and answer["seconds"] > _SMALL_SECONDS:
            raise self._too_much(is_small)
        rendered: str = answer["text"]
        return rendered

    def _too_much(self, is_small: bool) -> PunaError:
        bounds = f"{_SECONDS} second and {_MEMORY >> 20} MB"
        if not is_small:
            return BadInput(
                f"the model's chat template must be rendered in {bounds}, for this conversation it is not; "
                "shorten it, or use puna run --raw"
            )
        self._fault = (
            f"the file's chat template must be rendered in {bounds} at most, and a short conversation in "
            f"{_SMALL_SECONDS} seconds, this one is not; {_REMEDY}"
        )
        return BadFile(self._fault)
