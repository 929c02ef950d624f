"""Chat templates: the Jinja programs that model files carry, run as transformers runs them, in a sandbox.

What a template may use was fixed by transformers (apply_chat_template); files are written against it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, NoReturn

from puna.core import BadFile, BadInput

if TYPE_CHECKING:
    from jinja2.ext import Extension
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

# What expressions can raise on data that a template did not expect: adding None, missing keys, 1 / 0.
_FAILURES = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)


class ChatTemplate:
    """A compiled template. Raises BadFile where the source is no Jinja."""

    def __init__(self, source: str) -> None:
        from jinja2 import TemplateSyntaxError

        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise BadFile(
                f"the file's chat template must be Jinja, line {error.lineno} is not: {error.message}; use "
                "puna run --raw, or a file with a good template"
            ) from None

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
        template refuses the messages or fails on them.
        """
        from jinja2 import TemplateError

        today = date or datetime.now()
        try:
            return self._template.render(
                {
                    **(variables or {}),
                    "messages": messages,
                    "tools": tools,
                    "add_generation_prompt": add_generation_prompt,
                    "strftime_now": today.strftime,
                }
            )
        except (TemplateError, *_FAILURES) as error:
            raise BadInput(
                f"the model's chat template cannot take these messages: {error}; change them, or use "
                "puna run --raw"
            ) from None


def _environment() -> ImmutableSandboxedEnvironment:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation(), loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    # Jinja's own hand out classes, which are a way out of the sandbox.
    environment.globals["dict"] = _new_dict
    environment.globals["namespace"] = _new_namespace
    del environment.globals["lipsum"]
    return environment


def _generation() -> type[Extension]:
    from jinja2.ext import Extension
    from jinja2.nodes import CallBlock

    class Generation(Extension):
        """{% generation %}…{% endgeneration %} marks answers for training; here it is its content."""

        tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return CallBlock(self.call_method("content"), [], [], body).set_lineno(line)

        def content(self, caller: Callable[[], str]) -> str:
            return caller()

    return Generation


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
    from jinja2 import TemplateError

    raise TemplateError(message)


def _new_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _new_namespace(**values: Any) -> Namespace:
    """A namespace without underscored names, by which Python's own attributes could be reached."""
    from jinja2.exceptions import SecurityError
    from jinja2.utils import Namespace

    class Plain(Namespace):
        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"a namespace may not have the name {name!r}")
            super().__setitem__(name, value)

    namespace = Plain()
    for name, value in values.items():
        namespace[name] = value
    return namespace
