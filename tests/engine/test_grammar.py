"""Answers held to grammars: a model of noise, which would never say such things by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest
from engine.grammar_cases import NAME_AGE, REGEXES, SCHEMAS
from numpy.typing import NDArray
from text.vocabularies import small_sentencepiece, smollm2, smollm2_tokenizer

from puna.core import BadValue, Batch, Completion, PunaError, Request, SamplingParams, StepResult, Unsupported
from puna.engine.completion import completion
from puna.engine.config import EngineConfig
from puna.engine.draft import DraftModel
from puna.engine.engine import Engine
from puna.engine.grammar import MAX_TEXT, GrammarCompiler
from puna.engine.grammar_state import Grammar
from puna.engine.mock import MockExecutor
from puna.text.stream import TextStream
from puna.text.tokenizer import Tokenizer

CLOSERS = '"}],:0'  # made likely, so that noise comes to an end


@cache
def small() -> Tokenizer:
    return Tokenizer.from_gguf(small_sentencepiece())


@cache
def compiler() -> GrammarCompiler:
    return GrammarCompiler(small(), small().vocab_size)


def inside(text: str) -> list[int]:
    """Tokens of a text inside an answer, where no space is put before it."""
    before = small().encode("\n", bos=False)
    return small().encode("\n" + text, bos=False)[len(before) :]


def request(grammar: Grammar | None, tokenizer: Tokenizer | None = None, **params: Any) -> Request:
    tokenizer = tokenizer or small()
    bias = {inside(c)[-1]: 4.0 for c in CLOSERS}
    given = {"temperature": 1.0, "seed": 0, "max_tokens": 700, "logit_bias": bias, **params}
    return Request(
        [1, 5, 9],
        SamplingParams(**given),
        end_ids=tokenizer.end_ids,
        sink=TextStream(tokenizer, given.get("stop", ()), continuing=True),
        grammar=grammar and grammar.start(),
    )


def run(
    requests: Sequence[Request], n_blocks: int = 4096, has_draft: bool = False, **config: Any
) -> list[Completion | PunaError]:
    executor, draft = (MockExecutor(small().vocab_size, 1024, n, 4) for n in (n_blocks, 4096))
    engine = Engine(executor, EngineConfig(**config), DraftModel(draft, 512) if has_draft else None)
    found: dict[int, list[StepResult]] = {}
    for item in requests:
        engine.submit(item)
        found[item.id] = []
    while engine.is_busy:
        for result in engine.step():
            found[result.request_id].append(result)
    engine.close()
    return [found[r.id][-1].error or completion(r, found[r.id]) for r in requests]


def texts(grammar: Grammar, n: int = 3) -> list[str]:
    """Whole answers of some seeds, of which there has to be one."""
    answers = run([request(grammar, seed=seed) for seed in range(n)])
    whole = []
    for answer in answers:
        assert isinstance(answer, Completion), answer
        if answer.finish_reason == "stop":
            whole.append(answer.text)
    assert whole
    return whole


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: str(schema)[:60])
def test_finished_answers_are_valid_under_the_schema(schema: Any) -> None:
    for text in texts(compiler().json_schema(schema)):
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize("pattern", REGEXES)
def test_answers_match_a_regular_expression(pattern: str) -> None:
    for text in texts(compiler().regex(pattern)):
        assert re.fullmatch(pattern, text)


def test_answers_are_one_of_the_choices() -> None:
    choices = ["a", "ab", 'say "x"\n', "back\\slash", "é😀", "\x7f", ""]
    assert set(texts(compiler().choice(choices), 24)) <= set(choices)


def test_answers_follow_a_lark_grammar() -> None:
    grammar = compiler().lark('start: "(" start ")" | NUMBER\nNUMBER: /[0-9]{1,3}/')
    for text in texts(grammar):
        assert re.fullmatch(r"\(*\d{1,3}\)*", text)
        assert text.count("(") == text.count(")")


def test_llguidance_json_and_any_object() -> None:
    assert texts(compiler().llguidance('{"grammars": [{"json_schema": {"const": 7}}]}')) == ["7"] * 3
    assert all(isinstance(json.loads(text), dict) for text in texts(compiler().json_object()))


def test_white_space_is_json_dumps_unless_any() -> None:
    schema = {"const": {"a": 1, "b": [2, 3]}}
    strict, free = compiler().json_schema(schema), compiler().json_schema(schema, any_whitespace=True)
    assert set(texts(strict)) == {'{"a": 1, "b": [2, 3]}'}
    spaced = inside('{"a"\n: 1, "b"')
    assert strict.start().n_possible(spaced) < len(spaced) == free.start().n_possible(spaced)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_guesses_preemption_and_company_change_nothing(temperature: float) -> None:
    grammars = [
        compiler().json_schema(NAME_AGE), compiler().regex("(ab|cd)+e"), None,
        compiler().json_schema({"type": "array", "items": NAME_AGE, "minItems": 2}), compiler().json_object(),
    ]  # fmt: skip

    def batch() -> list[Request]:
        return [
            request(grammars[i % 5], seed=i, max_tokens=60, temperature=temperature, logprobs=2 * (i % 2))
            for i in range(10)
        ]

    alone = [run([item], max_guesses=0)[0] for item in batch()]
    assert run(batch()) == alone
    assert run(batch(), max_running=3) == alone
    assert run(batch(), n_blocks=40, max_step_tokens=8) == alone
    assert run(batch(), n_blocks=400, max_running=4, has_draft=True) == alone
    again = [run([item])[0] for item in batch()]
    assert [_without_cache(answer) for answer in again] == [_without_cache(answer) for answer in alone]


def _without_cache(answer: Any) -> Any:
    return answer.token_ids, answer.text, answer.finish_reason, answer.logprobs


class Counting(MockExecutor):
    n_steps = 0

    def step(self, batch: Batch) -> NDArray[np.float32]:
        self.n_steps += 1
        return super().step(batch)


def test_forced_text_costs_few_steps_and_same_tokens() -> None:
    grammar = compiler().json_schema(
        {"const": {"some_long_name": ["and", "a", "long", "list", "of", "words"]}}
    )
    answers = []
    for n in (0, 8):
        executor = Counting(small().vocab_size, 1024, 512, 4)
        engine = Engine(executor, EngineConfig(max_guesses=n))
        item = request(grammar)
        engine.submit(item)
        results = []
        while engine.is_busy:
            results += engine.step()
        answers.append((completion(item, results), executor.n_steps, engine.grammar_stats.n_masks))
        engine.close()
    (slow, n_slow, n_masks), (fast, n_fast, _) = answers
    assert fast == slow
    assert n_slow == n_masks == len(slow.token_ids)
    assert n_fast < n_slow / 3


def test_logprobs_are_the_models_own() -> None:
    item = request(compiler().regex("[ab]{4}"), logprobs=3)
    [answer] = run([item])
    assert isinstance(answer, Completion)
    assert answer.logprobs
    model = MockExecutor(small().vocab_size, 1024, 64, 4)
    tokens = list(item.prompt)
    for scored in answer.logprobs:
        logits = model.logits(tokens).astype(np.float64)
        expected = logits[scored.token_id] - np.log(np.exp(logits).sum())
        assert scored.logprob == pytest.approx(expected, abs=1e-5)
        tokens.append(scored.token_id)


def test_an_answer_ends_as_soon_as_it_is_complete() -> None:
    [answer] = run([request(compiler().regex("ab"), min_tokens=50)])
    assert isinstance(answer, Completion)
    assert (answer.text, answer.finish_reason, answer.stop) == ("ab", "stop", None)
    [answer] = run([request(compiler().regex("ab"), max_tokens=len(answer.token_ids))])
    assert isinstance(answer, Completion)
    assert answer.finish_reason == "stop"


def test_min_tokens_bars_the_end_while_the_grammar_may_go_on() -> None:
    loves_ends = dict.fromkeys(small().end_ids, 100.0)
    a = compiler().regex("a*")
    [short] = run([request(a, logit_bias=loves_ends)])
    [long] = run([request(a, logit_bias=loves_ends, min_tokens=9)])
    assert isinstance(short, Completion)
    assert isinstance(long, Completion)
    assert (len(short.token_ids), len(long.token_ids)) == (0, 9)
    assert long.stop in small().end_ids
    [at_end] = run([request(compiler().regex("a?"), min_tokens=9, ignore_end=True)])
    assert isinstance(at_end, Completion)
    assert at_end.finish_reason == "stop"


def test_stop_strings_cut_constrained_text() -> None:
    [answer] = run([request(compiler().regex("ab+c"), stop=("b",))])
    assert isinstance(answer, Completion)
    assert (answer.text, answer.stop) == ("a", "b")


class Stuck:
    """A grammar that no token fits after three."""

    may_end = is_complete = False
    problem = ""

    def __init__(self) -> None:
        self.n = 0

    def masks(self, draft: Sequence[int], /) -> NDArray[np.uint8]:
        value = 0 if self.n == 3 else 255
        return np.full((1 + len(draft), small().vocab_size // 8 + 1), value, np.uint8)

    def n_possible(self, draft: Sequence[int], /) -> int:
        return 0

    def forced(self) -> Sequence[int]:
        return ()

    def accept(self, token_id: int, /) -> None:
        self.n += 1


def test_a_grammar_without_any_token_ends_its_request_alone() -> None:
    def others() -> Request:
        return request(compiler().json_schema(NAME_AGE))

    stuck = request(None)
    stuck.grammar = Stuck()
    error, answer = run([stuck, others()])
    assert isinstance(error, BadValue)
    assert "after 3 tokens" in str(error)
    assert [answer] == run([others()])


def test_the_parsers_limits_end_a_request_alone() -> None:
    grammar = compiler().regex("(((a|b){1,100}){1,100}){1,100}")
    error, answer = run([request(grammar, min_tokens=400), request(compiler().regex("ab"))])
    assert isinstance(error, BadValue), error
    assert "simplify the grammar" in str(error)
    assert isinstance(answer, Completion)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda c: c.json_schema({"properties": {"a": {"not": {"pattern": "a"}}}}), "'not'"),
        (lambda c: c.lark('start: %json {"uniqueItems": true}'), "'uniqueItems'"),
        (lambda c: c.json_schema({"x-guidance": {"lenient": True}, "unevaluatedItems": {"a": 1}}), "'uneval"),
        (lambda c: c.json_schema({"type": "string", "format": "colour"}), "colour"),
        (lambda c: c.json_schema({"$ref": "https://example.org/s.json"}), "example.org"),
        (lambda c: c.json_schema({"oneOf": [{"pattern": "a"}, {"pattern": "b"}]}), "oneOf"),
        (lambda c: c.json_schema({"x-guidance": {"coerce_one_of": True}, "oneOf": [{}, {}]}), "oneOf"),
        (lambda c: c.json_schema({"unevaluatedItems": False}), "'unevaluatedItems'"),
        (lambda c: c.json_schema({"propertyNames": {"pattern": "a", "maxLength": 2}}), "'propertyNames'"),
        (lambda c: c.json_schema({"properties": {str(i): {} for i in range(20)}, "maxProperties": 9}),
         "'maxProperties'"),
        (lambda c: c.regex("(?=a)b"), "look-around"),
        (lambda c: c.regex(r"(a)\1"), "backreferences"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(
    make: Callable[[GrammarCompiler], Grammar], named: str
) -> None:
    with pytest.raises(Unsupported, match=re.escape(named)) as caught:
        make(compiler())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda c: c.json_schema(False),
        lambda c: c.json_schema([1]),
        lambda c: c.json_schema({"type": "strin"}),
        lambda c: c.json_schema({"properties": 3}),
        lambda c: c.json_schema({"enum": []}),
        lambda c: c.json_schema({"const": {1, 2}}),
        lambda c: c.json_schema({"const": float("nan")}),
        lambda c: c.json_schema({"$ref": "#/$defs/none"}),
        lambda c: c.json_schema({"pattern": "(a", "type": "string"}),
        lambda c: c.json_schema({"title": "\ud800"}),
        lambda c: c.regex("(a"),
        lambda c: c.regex(None),
        lambda c: c.regex("\ud800"),
        lambda c: c.lark("start: nothing"),
        lambda c: c.lark('other: "x"'),
        lambda c: c.lark(""),
        lambda c: c.llguidance("{bad"),
        lambda c: c.llguidance("[]"),
        lambda c: c.choice([]),
        lambda c: c.choice("ab"),
        lambda c: c.choice(["a", 1]),
    ],
)
def test_malformed_grammars_are_refused_in_one_sentence(make: Callable[[GrammarCompiler], Grammar]) -> None:
    with pytest.raises(BadValue, match=r".{20}") as caught:
        make(compiler())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "make",
    [
        lambda c: c.regex("a" * (MAX_TEXT + 1)),
        lambda c: c.regex("((a{100}){100}){100}{100}"),
        lambda c: c.regex("(" * 5000 + "a" + ")" * 5000),
        lambda c: c.lark("start: " + "(" * 5000 + '"a"' + ")" * 5000),
        lambda c: c.json_schema(nested(300)),
        lambda c: c.json_schema(nested(100_000)),
        lambda c: c.json_schema({"enum": [f"v{i}" for i in range(150_000)]}),
        lambda c: c.json_schema({"properties": {f"p{i}": {"type": "string"} for i in range(20_000)}}),
    ],
)
def test_hostile_grammars_are_refused(make: Callable[[GrammarCompiler], Grammar]) -> None:
    with pytest.raises(BadValue):
        make(compiler())


def test_compiled_grammars_are_kept_and_bounded() -> None:
    fresh = GrammarCompiler(small(), small().vocab_size)
    first = fresh.choice(["x"])
    assert fresh.choice(["x"]) is first
    for i in range(70):
        fresh.choice([str(i)])
    assert fresh.choice(["x"]) is not first


def test_control_tokens_are_no_text_and_padding_is_no_token() -> None:
    tokenizer = smollm2_tokenizer()
    grammars = GrammarCompiler(tokenizer, tokenizer.vocab_size + 40)
    [mask] = grammars.regex("(?s:.*)").start().masks(())
    allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
    assert set(allowed) & tokenizer.special_ids == tokenizer.end_ids
    assert allowed.max() < tokenizer.vocab_size
    state = grammars.lark('start: <|im_start|> "a"').start()
    assert list(state.forced())[:1] == [tokenizer.id("<|im_start|>")]


def test_rows_that_are_shorter_than_the_vocabulary() -> None:
    """Llama 3.2 Vision and 4 have tokens for images that are never predicted."""
    tokenizer = Tokenizer.from_gguf(smollm2(extra={"<|image|>": 3}))
    grammars = GrammarCompiler(tokenizer, tokenizer.vocab_size - 1)
    assert grammars.json_object().start().masks(()).shape == (1, 49152 // 8)


@pytest.mark.parametrize("text", ['{"name": "Jo", "age": 3}', '{"name": "é😀", "age": -12}'])
def test_masks_allow_what_the_tokenizer_makes_of_a_valid_text(text: str) -> None:
    """The division into tokens that the model knows must not be barred."""
    tokenizer = smollm2_tokenizer()
    state = GrammarCompiler(tokenizer, tokenizer.vocab_size).json_schema(NAME_AGE).start()
    for token in tokenizer.encode(text):
        mask = state.masks(())[0]
        assert mask[token >> 3] >> (token & 7) & 1
        state.accept(token)
    assert state.is_complete
