"""Calls of tools, as data: which values that a model wrote are one, and of which tools there are any."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from puna.core import BadInput
from puna.text.literals import NotACall, json_value, keywords, plain

BUILTIN_TOOLS = ("brave_search", "wolfram_alpha", "photogen", "code_interpreter")
CODE_INTERPRETER = "code_interpreter"

_ARGUMENTS = ("parameters", "arguments")
_UNESCAPED = re.compile(r'\s*query\s*=\s*"(.*)"\s*', re.DOTALL)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that exists; `arguments` are plain data by name."""

    name: str
    arguments: Mapping[str, Any]

    @property
    def arguments_json(self) -> str:
        """As the APIs of OpenAI's kind carry them."""
        return json.dumps(self.arguments, ensure_ascii=False)


def tool_names(tools: Iterable[str | Mapping[str, Any]]) -> frozenset[str]:
    """Names of tools, given by name or by definition ({"name": …}, or that under "function").

    Raises BadInput for a definition without a name.
    """
    names = []
    for tool in tools:
        inner = tool.get("function", tool) if isinstance(tool, Mapping) else {"name": tool}
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if not isinstance(name, str) or not name:
            raise BadInput(f'a tool must be a name or {{"name": …, "parameters": …}}, found {tool!r:.80}')
        names.append(name)
    return frozenset(names)


def calls_of_json(value: Any, names: Set[str]) -> list[ToolCall]:
    """The calls that a value in JSON is; raises NotACall."""
    if isinstance(value, list) and value:
        return [call for item in value for call in calls_of_json(item, names)]
    if not isinstance(value, dict):
        raise NotACall
    inner = value.get("function")
    if isinstance(inner, dict):
        value = inner
    name = value.get("name", inner)
    given = [value[key] for key in _ARGUMENTS if key in value]
    if not given:
        raise NotACall
    arguments = json_value(given[0]) if isinstance(given[0], str) else given[0]
    return [call_of(name, arguments, names)]


def call_with_keywords(name: str, arguments: str, names: Set[str]) -> ToolCall:
    """The call that has `arguments` between its brackets, as Python writes them; raises NotACall."""
    try:
        return call_of(name, keywords(arguments), names)
    except NotACall:
        # Meta renders a query between quotes as it is.
        query = _UNESCAPED.fullmatch(arguments)
        if query is None or name not in BUILTIN_TOOLS:
            raise
        return call_of(name, {"query": query[1]}, names)


def call_of(name: Any, arguments: Any, names: Set[str]) -> ToolCall:
    """Raises NotACall where there is no such tool, or JSON could not carry the arguments."""
    if not isinstance(name, str) or name not in names or not isinstance(arguments, dict):
        raise NotACall
    return ToolCall(name, plain(arguments))
