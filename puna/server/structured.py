"""What an answer is held to: grammars of the model's compiler, by the names that requests use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary

from puna.engine.grammar import Grammar, GrammarCompiler
from puna.server.served import ServedModel
from puna.text.call_grammar import call_grammar, call_style

Kind = Literal["json_object", "json_schema", "regex", "lark", "choice"]

_compilers: WeakKeyDictionary[ServedModel, GrammarCompiler] = WeakKeyDictionary()


def compiler_of(model: ServedModel) -> GrammarCompiler:
    """The compiler of a model: it takes the vocabulary apart once, and keeps what it compiled lately."""
    found = _compilers.get(model)
    if found is None:
        found = _compilers.setdefault(model, GrammarCompiler(model.tokenizer, model.config.vocab_size))
    return found


def compiled(model: ServedModel, kind: Kind, value: Any) -> Grammar:
    """Raises BadValue for a malformed grammar, Unsupported for a keyword of JSON Schema that is not known."""
    compiler = compiler_of(model)
    if kind == "json_object":
        return compiler.json_object()
    found: Grammar = getattr(compiler, kind)(value)
    return found


def calls_only(
    model: ServedModel,
    tools: Sequence[Mapping[str, Any]],
    *,
    required: bool,
    named: str | None,
    parallel: bool,
) -> Grammar | None:
    """What holds an answer to calls of the tools; None where it is free: not required, and no tool strict."""
    style = call_style(model.tokenizer, model.chat_format)
    grammar = call_grammar(tools, style, named=named, parallel=parallel, required=required)
    return None if grammar is None else compiler_of(model).calls(grammar)
