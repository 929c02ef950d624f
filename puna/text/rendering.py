"""Renders chat templates in a process that may die of them: Jinja programs of strangers (confined.py).

A template is run as transformers runs it (apply_chat_template), in Jinja's sandbox, which keeps it from
Python's own attributes but bounds neither time nor memory: '*' and '**' of numbers, widths of formats, loops
inside loops and texts that double take as much as they please, some while the source is compiled.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from time import process_time
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from puna.text.confined import first_line, serve

# What expressions can raise on data that a template did not expect: adding None, missing keys, 1 / 0.
_FAILURES = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """{"text", "seconds"} of CPU time; or {"line", "syntax"} where the source is no Jinja, {"refused"} where
    the template refuses the variables or fails on them.
    """
    try:
        template = _compiled(question["source"])
    except TemplateSyntaxError as error:
        return {"line": error.lineno, "syntax": str(error.message)}
    except RecursionError:
        return {"line": 1, "syntax": "nested too deeply"}
    today = datetime.fromisoformat(question["today"])
    started = process_time()
    try:
        text = template.render({**question["variables"], "strftime_now": today.strftime})
    except (TemplateError, *_FAILURES) as error:
        return {"refused": str(error)[:1000]}
    return {"text": text, "seconds": process_time() - started}


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    return _environment().from_string(source)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    # Jinja's own hand out classes, which are a way out of the sandbox.
    environment.globals["dict"] = _new_dict
    environment.globals["namespace"] = _new_namespace
    del environment.globals["lipsum"]
    return environment


class _Generation(Extension):
    """{% generation %}…{% endgeneration %} marks answers for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("content"), [], [], body).set_lineno(line)

    def content(self, caller: Callable[[], str]) -> str:
        return caller()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' filter: unlike Jinja's own it does not escape for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _new_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


class _Plain(Namespace):
    """A namespace without underscored names, by which Python's own attributes could be reached."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace may not have the name {name!r}")
        super().__setitem__(name, value)


def _new_namespace(**values: Any) -> Namespace:
    namespace = _Plain()
    for name, value in values.items():
        namespace[name] = value
    return namespace


def main() -> None:
    seconds, memory, more = first_line()
    serve(answer, seconds, lambda n_bytes: memory + more * n_bytes)


if __name__ == "__main__":
    main()
