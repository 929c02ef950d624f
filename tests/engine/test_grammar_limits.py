"""What somebody sends as a grammar must not end the process, nor what others are being answered."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest
from text.vocabularies import smollm2_tokenizer

from puna.core import BadValue, Unsupported
from puna.engine.deep import on_deep_stack
from puna.engine.grammar import GrammarCompiler
from puna.engine.grammar_state import Grammar, GrammarState
from puna.engine.trials import Trials


@cache
def compiler() -> GrammarCompiler:
    tokenizer = smollm2_tokenizer()
    return GrammarCompiler(tokenizer, tokenizer.vocab_size)


@cache
def byte_ids() -> dict[int, int]:
    tokenizer = smollm2_tokenizer()
    spelled = ((tokenizer.token_bytes(i), i) for i in range(tokenizer.vocab_size))
    return {piece[0]: i for piece, i in spelled if len(piece) == 1}


def accepts(grammar: Grammar, text: str) -> bool:
    """Whether a whole answer may be that text, spelled byte by byte."""
    state = grammar.start()
    for byte in text.encode():
        if state.n_possible([byte_ids()[byte]]) != 1:
            return False
        state.accept(byte_ids()[byte])
    return state.may_end


def chain(n: int) -> dict[str, Any]:
    links = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(n)}
    return {"$ref": "#/$defs/a0", "$defs": {**links, f"a{n}": {"type": "integer"}}}


@pytest.mark.parametrize("n", [5_000, 25_000])
def test_long_chains_of_references(n: int) -> None:
    """5,000 references end a process in llguidance 1.9 where the stack has 8 MB."""
    assert accepts(compiler().json_schema(chain(n)), "17")


@pytest.mark.parametrize("rule", ["a{}: a{}", 'a{}: "y" a{}', "a{}: a{}?"])
@pytest.mark.parametrize("n", [9_000])
def test_long_chains_of_rules(rule: str, n: int) -> None:
    rules = "\n".join(rule.format(i, i + 1) for i in range(n))
    with suppress(BadValue):  # how many rules are too many is the library's affair
        compiler().lark(f'start: a0\n{rules}\na{n}: "x"')


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"type": "string", "pattern": f"x{i}.*y"} for i in range(30)]},
        {"type": "integer", "multipleOf": 999_983},  # 470 MB
    ],
)
def test_what_cannot_be_compiled_at_a_bounded_cost_is_refused(schema: Any) -> None:
    """In one process of llguidance 1.9, the first takes minutes."""
    with pytest.raises(BadValue, match="2 seconds and 64 MB"):
        compiler().json_schema(schema)
    assert accepts(compiler().json_schema({"multipleOf": 3, "type": "integer"}), "9")


def test_trials_end_with_their_owner_and_begin_again() -> None:
    trials = Trials(["<|end|>", "<|other|>"], {"initial_lexer_fuel": 100_000})
    assert trials.is_bounded('start: <|other|> "a"')
    first = trials._confined._process
    assert first
    first.kill()
    assert not trials.is_bounded('start: "b"')  # nobody knows
    assert trials.is_bounded('start: "b"')
    second = trials._confined._process
    assert second
    del trials
    assert second.wait(10) < 0


def test_what_runs_on_a_deep_stack_raises_to_its_caller() -> None:
    assert on_deep_stack(lambda: 3) == 3
    with pytest.raises(KeyError):
        on_deep_stack(lambda: {}[1])


# The second is not what its own schema says, read by the parser: the library itself would allow it.
DIFFERENT = [
    ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
      "additionalProperties": {"type": "string"}}, '{"a": 1}', '{"a": 1, "\\u0061": "x"}'),
    ({"type": "object", "patternProperties": {"^b": {"type": "null"}},
      "additionalProperties": {"type": "string"}}, '{"a": "x"}', '{"\\u0062": "x"}'),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "good", "bad"), DIFFERENT)
@pytest.mark.parametrize("in_lark", [False, True])
def test_names_cannot_be_spelled_otherwise(schema: Any, good: str, bad: str, in_lark: bool) -> None:
    judge = jsonschema.Draft202012Validator(schema)
    assert judge.is_valid(json.loads(good))
    assert not judge.is_valid(json.loads(bad))
    if in_lark:
        grammar = compiler().lark("start: %json " + json.dumps(schema))
    else:
        grammar = compiler().json_schema(schema)
    assert accepts(grammar, good)
    assert not accepts(grammar, bad)


def test_schemas_inside_lark_are_looked_at_as_well() -> None:
    lenient = {"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}
    with pytest.raises(Unsupported, match="'uniqueItems'"):
        compiler().lark("start: %json " + json.dumps(lenient))
    text = compiler().lark('start: "%json {" | %json {"const": 1} "%json"')
    assert accepts(text, "%json {")
    assert accepts(text, "1%json")


HARD = "(((a|b){1,100}){1,100}){1,100}"


def lead_on(state: GrammarState) -> str:
    """Say something likely to be hard until there is a problem."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        allowed = np.flatnonzero(np.unpackbits(state.masks(())[0], bitorder="little"))
        if state.problem:
            return state.problem
        state.accept(int(rng.choice(allowed[allowed > 20])))
    return ""


def test_an_answer_that_is_too_hard_does_not_take_others_along() -> None:
    """They share a lexer: one that is at its limits has no masks for anybody."""
    grammar = compiler().regex(HARD)
    hard, other = grammar.start(), grammar.start()
    before = other.masks(()).copy()
    other.accept(byte_ids()[ord("a")])
    assert "too many" in lead_on(hard)
    assert not other.problem
    assert other.masks(()).any()
    assert not other.problem
    assert np.array_equal(grammar.start().masks(()), before)
    assert hard.problem


def test_a_guess_that_is_too_hard_is_none_of_the_answer() -> None:
    grammar = compiler().regex(HARD)
    hard = grammar.start()
    lead_on(hard)
    told = hard._taken
    state = grammar.start()
    for token in told[:2]:
        state.accept(token)
    alone = grammar.start()
    for token in told[:2]:
        alone.accept(token)
    expected = alone.masks(()).copy()
    assert np.array_equal(state.masks(told[2:])[:1], expected)
    assert not state.problem
    assert np.array_equal(state.masks(()), expected)


def test_long_forced_texts_are_divided_a_piece_at_a_time() -> None:
    """At every token of them llguidance asks for all the rest: 40 ms each where that is 100 KB."""
    text = "grammars hold answers " * 4000
    tokenizer = smollm2_tokenizer()
    state = compiler().choice([text]).start()
    asked: list[int] = []
    for expected in tokenizer.encode(text)[:400]:
        [token, *_] = state.forced()
        mask = state.masks(())[0]
        assert np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist() == [token]
        asked.append(len(state.forced()))
        assert token == expected
        state.accept(token)
    assert max(asked) < 256
