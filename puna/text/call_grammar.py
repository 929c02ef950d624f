"""Grammars of tool calls, for answers that have to be calls, or that must call well if they call at all.

What such a grammar allows is read by tools.py as calls of the tools, with arguments valid under their
schemas. The texts are Lark, in llguidance's dialect with JSON schemas inside (%json); this module only writes
them. Subsets are taken of what schemas allow where that keeps calls readable: numbers without bounds lie
where every reader of JSON has them exactly, strings escape what both JSON and Python know, and arguments that
have names are no others unless the schema says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from keyword import iskeyword
from typing import TYPE_CHECKING, Any

from puna.core import BadInput, BadValue, closest
from puna.text.json_schema import prepared
from puna.text.schema.document import Schema
from puna.text.schema.numbers import bounded
from puna.text.schema.places import Places, has_unique, without_unique
from puna.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from puna.text.formats.base import ToolStyle

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_TAGS = ("<|python_tag|>", "<|python_start|>", "<|python_end|>")
_ARGUMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_JSON_OPENING, _JSON_GIVEN, _TAG_OPENING = '{{"name": "{}"', ', "parameters": ', "<function={}>"
_SPACED = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "json_allowed_escapes": '"\\nrt',
    "lenient": False,
    "coerce_one_of": False,
}
# Keywords of a schema of arguments that Python's form can follow argument by argument.
_BY_ARGUMENT = {
    "type", "properties", "required", "additionalProperties", "title", "description", "$schema", "$defs",
    "definitions", "strict",
}  # fmt: skip


def tag_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Control tokens of a vocabulary that calls stand behind or between: hidden, they could not be read."""
    return frozenset(tokenizer.id(tag) for tag in _TAGS if tokenizer.has(tag))


def call_style(tokenizer: Tokenizer, chat_format: str | None = None) -> ToolStyle:
    """How a model was told to call tools: by its file's template, or else by the format of its prompts."""
    from puna.text.formats import FORMATS, guess
    from puna.text.formats.headers import HeaderFormat

    template = tokenizer.chat_template
    if chat_format is None and template is not None:
        if "<function=" in template:
            return "function"
        return "pythonic" if "func_name1(" in template else "json"
    builder = FORMATS.get(chat_format or guess(tokenizer) or "")
    style = builder.tool_style if isinstance(builder, HeaderFormat) else None
    return style or "json"


@dataclass(frozen=True, slots=True)
class CallGrammar:
    """`text` is Lark. Where lists of arguments have to be unique, which no grammar knows, `arguments` are the
    schemas of all arguments, by what they stand behind.
    """

    text: str
    arguments: Mapping[str, Schema]


def call_grammar(
    tools: Sequence[Mapping[str, Any]],
    style: ToolStyle,
    *,
    named: str | None = None,
    parallel: bool = True,
    required: bool = True,
) -> CallGrammar | None:
    """Of an answer that is one call, or with `parallel` one or more, of `tools` (OpenAI's definitions).

    `named` is the one tool that may be called. Without `required` the answer may also be text, and text may
    come before the calls; arguments are then held to the schemas of those tools that say "strict": true, and
    None is returned where no tool says so and there may be any number of calls. A tool with arguments that
    Python has no names for, or that have unique lists, is called in JSON, which every answer is read for.

    Raises BadInput for a tool without a proper name, BadValue where there is no tool of the name or none at
    all, and what json_schema.prepared does for the arguments.
    """
    functions = [_function(tool) for tool in tools]
    if named is not None:
        names = [function.name for function in functions]
        functions = [function for function in functions if function.name == named]
        if not functions:
            raise BadValue(
                f"the tool to call must be one of the tools, found {named!r}{closest(named, names)}"
            )
    if not functions:
        raise BadValue("to call a tool there must be one, found none; give tools or let the answer be free")
    if not required:
        if parallel and not any(function.strict for function in functions):
            return None
        functions = [f if f.strict else _Function(f.name, {"type": "object"}, False) for f in functions]
    if style == "pythonic" and not all(_is_pythonic(f) for f in functions if required or f.strict):
        style = "json"
    write = {"json": _json, "pythonic": _pythonic, "function": _tagged}[style]
    text = write(functions, parallel, not required)
    if not any(has_unique(function.arguments) for function in functions):
        return CallGrammar(text, {})
    behind = _JSON_OPENING + _JSON_GIVEN if style == "json" else _TAG_OPENING
    return CallGrammar(text, {behind.format(f.name): f.arguments for f in functions})


@dataclass(frozen=True)
class _Function:
    name: str
    parameters: Mapping[str, Any]
    strict: bool

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """All arguments of a call as a JSON object, in the words of grammars and with uniqueItems."""
        parameters = {"type": "object", **self.parameters}
        if "properties" in parameters:
            parameters.setdefault("additionalProperties", False)
        return bounded(prepared(parameters, keeps_unique=True))


def _function(tool: Mapping[str, Any]) -> _Function:
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadInput(
            "a tool that has to be called must have a name of letters, digits, _, . and -, found "
            f"{name if isinstance(inner, Mapping) else tool!r:.80}"
        )
    parameters = inner.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping):
        raise BadInput(f"parameters of tool {name!r} must be a JSON schema, found {parameters!r:.80}")
    return _Function(name, parameters, inner.get("strict") is True)


def _schema(schema: Schema) -> str:
    return _written(bounded(prepared(schema)))


def _written(known: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**known, "x-guidance": _SPACED}, ensure_ascii=False)


def _arguments(function: _Function) -> str:
    known = function.arguments
    return _written(without_unique(Places(known), known) if has_unique(known) else known)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _json(functions: Sequence[_Function], parallel: bool, may_talk: bool) -> str:
    given = _quoted(_JSON_GIVEN)
    rules = [
        f"f{i}_rest: {given} a{i} {_quoted('}')}\na{i}: {_arguments(function)}"
        for i, function in enumerate(functions)
    ]
    return _grammar(functions, rules, _JSON_OPENING, "; ", parallel, may_talk)


def _tagged(functions: Sequence[_Function], parallel: bool, may_talk: bool) -> str:
    rules = [
        f"f{i}_rest: a{i} {_quoted('</function>')}\na{i}: {_arguments(function)}"
        for i, function in enumerate(functions)
    ]
    return _grammar(functions, rules, _TAG_OPENING, "", parallel, may_talk)


def _pythonic(functions: Sequence[_Function], parallel: bool, may_talk: bool) -> str:
    rules = []
    for i, function in enumerate(functions):
        is_free = may_talk and not function.strict
        rules += _any_keywords(f"f{i}_rest") if is_free else _keywords(f"f{i}_rest", function)
    return _grammar(functions, rules, "{}(", ", ", parallel, may_talk, around=("[", "]"))


def _grammar(
    functions: Sequence[_Function],
    rules: Sequence[str],
    opening: str,
    separator: str,
    parallel: bool,
    may_talk: bool,
    around: tuple[str, str] = ("", ""),
) -> str:
    """Calls with what is `around` them all. Rule f0_rest is how a call of the first function goes on after
    its opening, which names it.
    """
    openings = [opening.format(function.name) for function in functions]
    begin, end = around
    calls = [f"{_quoted(text)} f{i}_rest" for i, text in enumerate(openings)]
    more = f"({_quoted(separator)} call)*" if separator else "call*"
    closing = " ".join([more] if parallel else []) + (f" {_quoted(end)}" if end else "")
    lines = [f"call: {_any(calls)}", *rules]
    if not may_talk:
        first = f"{_quoted(begin)} " if begin else ""
        return "\n".join([f"start: {first}call {closing}", *lines]) + "\n"
    # Text ends, lazily, where a call begins; what only looks like a call to a reader is barred from it. It is
    # barred before the opening, not from both together: `TALK "x"` takes a hundredth of the work, for each
    # tool, of `/.*x/ & ~/.*(y).*/`. No lookalike reaches into an opening, whose first character they have at
    # their own beginning only.
    talks = []
    begins = [re.escape(begin + text) for text in openings]
    for i, text in enumerate(begins):
        talks.append(f"talk{i} f{i}_rest {closing}")
        lines.append(f"talk{i}[lazy]: BEFORE{i}")
        lines.append(f"BEFORE{i}: TALK {_regex(text)}")
    lines.append(f"TALK: {_without([*begins, *_lookalikes(functions, opening)])}")
    return "\n".join([f"start: TALK | {' | '.join(talks)}", *lines]) + "\n"


def _any(alternatives: Sequence[str]) -> str:
    return "\n  | ".join(alternatives)


def _regex(pattern: str) -> str:
    return "/" + pattern.replace("/", r"\/") + "/"


def _without(patterns: Sequence[str]) -> str:
    """A terminal of texts that contain none of the patterns; what is no Unicode is no text either."""
    return _regex("(?s:.*)") + " & ~" + _regex(f"(?s:.*)({'|'.join(patterns)})(?s:.*)")


def _lookalikes(functions: Sequence[_Function], opening: str) -> list[str]:
    """Patterns of other ways to write a call of one of the functions that tools.py reads."""
    names = "|".join(re.escape(function.name) for function in functions)
    gap = r"[ \t\r\n]"
    found = [r"<\|python_(tag|start)\|>"]
    if opening.startswith("{{"):
        name, colon = rf'"name"{gap}*', rf':{gap}*"({names})"'
        # all but the one spacing that opens a call
        found += [rf"\{{{gap}+{name}{colon}", rf'\{{"name"{gap}+{colon}']
        found += [rf'\{{"name":("|{gap}{{2,}}"|[\t\r\n]")({names})"']
    else:
        found.append(rf'\{{{gap}*"name"{gap}*:{gap}*"({names})"')
    found.append(rf'\{{{gap}*("type"{gap}*:{gap}*"function"|"(function|parameters|arguments)"{gap}*:)')
    if not opening.startswith("<"):
        found.append(rf"<function=({names})>")
    found.append(rf"\[{gap}+({names})\(" if opening == "{}(" else rf"\[{gap}*({names})\(")
    return found


def _is_pythonic(function: _Function) -> bool:
    """Whether the arguments of a function can be written one by one as name=value."""
    schema = function.parameters
    properties, required = schema.get("properties", {}), schema.get("required", [])
    return (
        set(schema) <= _BY_ARGUMENT
        and schema.get("type", "object") == "object"
        and isinstance(properties, Mapping)
        and set(required) <= set(properties)
        and ("properties" in schema or schema.get("additionalProperties") is False)
        and '"$ref": "#"' not in json.dumps(schema, default=str)  # the value of one argument is no whole
        and all(_ARGUMENT.fullmatch(name) and not iskeyword(name) for name in properties)
        and not has_unique(function.arguments)
    )


def _keywords(rule: str, function: _Function) -> list[str]:
    """Rules of `a=1, b="x")`, in the order of the schema; what is not required may be left out."""
    schema = function.parameters
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    required = set(schema.get("required", ()))
    rules, names = [], list(schema.get("properties", {}))
    for i, name in enumerate(names):
        value = schema["properties"][name]
        is_last = i + 1 == len(names)
        after = f"{rule}_and{i + 1}" if not is_last else '")"'
        for state, comma in [("", "")] if i == 0 else [("_or", ""), ("_and", ", ")]:
            here = rule if i == 0 else f"{rule}{state}{i}"
            skipped = f"{rule}{state or '_or'}{i + 1}" if not is_last else '")"'
            written = f"{_quoted(f'{comma}{name}=')} {rule}_v{i} {after}"
            rules.append(f"{here}: {written}" + ("" if name in required else f"\n  | {skipped}"))
        rules.append(f"{rule}_v{i}: {_value(value, shared)}")
    return rules or [f'{rule}: ")"']


def _any_keywords(rule: str) -> list[str]:
    """The same where nothing is known of the arguments."""
    return [
        f'{rule}: ({rule}_one (", " {rule}_one)*)? ")"',
        f'{rule}_one: {rule.upper()}_NAME "=" {rule}_value',
        f'{rule}_value: "True" | "False" | "None" | {_schema(True)}',
        f"{rule.upper()}_NAME: {_regex(_ARGUMENT.pattern)}",
    ]


def _value(schema: Any, shared: Mapping[str, Any]) -> str:
    """A value as Python writes it where it is true, false or null alone, else as JSON, which is read too."""
    if isinstance(schema, Mapping) and not set(schema) - {"type", "title", "description", "default"}:
        if schema.get("type") == "boolean":
            return '"True" | "False"'
        if schema.get("type") == "null":
            return '"None"'
    if not isinstance(schema, Mapping):
        return _schema(schema)
    return _schema({**shared, **schema})
