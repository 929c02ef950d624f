"""Every finished answer is valid under its schema; jsonschema is the judge, with formats. Here: our own
schemas. `python -m server.structured.real_schemas` has those of schemastore.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jsonschema
import pytest
from server.structured.answers import answer
from server.structured.schemas import schemas
from text.vocabularies import smollm2_tokenizer

from puna.core import BadValue
from puna.engine.grammar import GrammarCompiler

SCHEMAS = schemas(200)
Judge = jsonschema.Draft202012Validator


@cache
def compiler() -> GrammarCompiler:
    tokenizer = smollm2_tokenizer()
    return GrammarCompiler(tokenizer, tokenizer.vocab_size)


@pytest.mark.parametrize("part", range(8))
def test_finished_answers_are_valid(part: int) -> None:
    n_finished = 0
    for schema in SCHEMAS[part::8]:
        judge = Judge(schema, format_checker=Judge.FORMAT_CHECKER)
        grammar = compiler().json_schema(schema)
        for seed in range(2):
            said = answer(grammar, smollm2_tokenizer(), seed, 400)
            if said is not None:
                judge.validate(json.loads(said))
                n_finished += 1
    assert n_finished > 40


def keywords(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(keywords, value))
    if not isinstance(value, dict):
        return set()
    return set(value).union(*map(keywords, value.values()))


def test_our_schemas_have_every_keyword() -> None:
    from puna.text import json_schema

    known = {
        *json_schema._AS_THEY_ARE,
        *json_schema._NAMED,
        *json_schema._MANY,
        "items",
        "additionalProperties",
    }
    known |= {
        "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "propertyNames", "contains",
        "unevaluatedProperties", "uniqueItems", "oneOf", "$ref", "$anchor", "format",
    }  # fmt: skip
    assert known <= keywords(SCHEMAS)


def test_the_format_checks_are_on() -> None:
    """jsonschema leaves out what it has no library for."""
    from server.structured.schemas import FORMATS

    missing = set(FORMATS) - set(Judge.FORMAT_CHECKER.checkers)
    assert not missing, missing
    with pytest.raises(jsonschema.ValidationError):
        Judge({"format": "date"}, format_checker=Judge.FORMAT_CHECKER).validate("2026-02-30")


def test_all_our_schemas_compile() -> None:
    refused = []
    for i, schema in enumerate(SCHEMAS):
        try:
            compiler().json_schema(schema)
        except BadValue as error:
            refused.append((i, str(error)))
    assert not refused
