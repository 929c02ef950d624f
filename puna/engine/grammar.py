"""Grammars that answers are held to, by llguidance: JSON schemas, regular expressions, Lark, choices.

A grammar is compiled once and started for every answer. What is bounded, so that a hostile one costs little:
the length of its text, time and memory of compiling it (trials.py), the work to build its lexer, the states
of that and the items of its parser, in all and for every mask, and the time of the first mask. Chains of
references and rules may be as long as a text can hold (deep.py). A hostile grammar still takes some seconds
to refuse, in which other threads run: callers with an event loop compile in a thread.

llguidance is imported with the first grammar, and then takes the vocabulary apart: once per model.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from threading import Lock
from time import thread_time
from typing import TYPE_CHECKING, Any, cast

from puna.core import BadValue, Unsupported
from puna.engine.deep import on_deep_stack
from puna.engine.grammar_state import Grammar, explanation
from puna.engine.trials import Trials
from puna.engine.unique import Calls, Reading, Repeats, Text
from puna.text.json_schema import prepared
from puna.text.schema.places import Places, has_unique, without_unique
from puna.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer
    from llguidance._lib import JsonCompileOptions

    from puna.text.call_grammar import CallGrammar

__all__ = ["MAX_TEXT", "Grammar", "GrammarCompiler"]

MAX_TEXT = 1 << 20  # characters of a grammar
_MAX_KEPT = 64  # compiled grammars
_LONGEST_MASK = 0.25  # seconds of one core; others wait for it
_LONGEST_FORCED = 256  # characters of a forced text that are divided into tokens at a time
_LIMITS: dict[str, Any] = {
    "max_items_in_row": 10_000,  # a schema of 400 properties that may all be left out has 5,331
    # Also bounds the longest forced text: less than a second, not several.
    "initial_lexer_fuel": 400_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 500_000,
    "verbose_errors": False,
}
# As json.dumps writes; white space that is free lets small models write nothing else.
_JSON_OPTIONS = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
# Whatever the schema itself asks for. An escape \\u0061 would make another name of a property that has one.
_STRICT = {"lenient": False, "coerce_one_of": False, "json_allowed_escapes": 'nrbtf\\"'}
_NOT_RUN = re.compile(
    r"unimplemented|unsupported|(?:not|not yet|not fully|only) supported|not present in a registry|"
    r"unknown format|not disjoint",
    re.IGNORECASE,
)
_SCHEMA_IN_LARK = re.compile(r"%json\s*(?=\{)")
_KEYS = re.compile(r'Unimplemented keys: \[(".*")\]')


class GrammarCompiler:
    """Compiles grammars for the vocabulary of one model, whose logits are `n_vocab`; safe in any thread.

    Every method gives the same Grammar for the same arguments, as long as it is among the last few dozen. All
    raise BadValue for a grammar that is malformed, too large, or allows nothing, and Unsupported where it
    needs what llguidance does not have, by its name: no keyword is left out silently.
    """

    def __init__(self, tokenizer: Tokenizer, n_vocab: int) -> None:
        self._tokenizer = tokenizer
        self._n_vocab = n_vocab
        self._kept: OrderedDict[tuple[str, str, str], Grammar] = OrderedDict()
        self._lock = Lock()
        self._build_lock = Lock()
        special = (tokenizer.token_bytes(i) for i in sorted(tokenizer.special_ids))
        self._trials = Trials([name.decode("utf-8", "replace") for name in special], _LIMITS)

    def json_schema(self, schema: Mapping[str, Any] | bool, *, any_whitespace: bool = False) -> Grammar:
        """JSON valid under a schema (drafts 4 to 2020-12), spaced as json.dumps does unless any_whitespace.

        Members come in the order of `properties`, others after them.
        """
        from llguidance import LLMatcher

        if schema is False:
            raise BadValue("a JSON schema must allow some value, found false, which allows none; change it")
        if not isinstance(schema, Mapping) and schema is not True:
            raise BadValue(f"a JSON schema must be an object or a bool, found a {type(schema).__name__}")
        _check_length(_dumped(schema), "JSON schema")
        known = prepared(schema, keeps_unique=True)
        places = Places(known) if has_unique(known) else None
        text = _dumped(without_unique(places, known) if places else known if known is not True else {})
        spacing = {"whitespace_flexible": True} if any_whitespace else _JSON_OPTIONS
        _check_length(text, "JSON schema, in the words of grammars,")
        options = cast("JsonCompileOptions", {**spacing, **_STRICT})
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=options)
        except ValueError as error:  # nests deeper than llguidance reads
            _check(str(error), "JSON schema")
            raise
        if places is None:
            return self._compiled("JSON schema", grammar)
        return self._compiled("JSON schema", grammar, _dumped(known), Reading(places.root))

    def json_object(self) -> Grammar:
        """Any JSON object."""
        return self.json_schema({"type": "object"})

    def regex(self, pattern: str) -> Grammar:
        """All of the answer matches; in the syntax of Rust's regex crate, without look-around."""
        from llguidance import LLMatcher

        _check_text(pattern, "regular expression")
        return self._compiled("regular expression", LLMatcher.grammar_from_regex(pattern))

    def lark(self, text: str) -> Grammar:
        """A grammar in llguidance's dialect of Lark, which begins at the rule `start`."""
        from llguidance import LLMatcher

        _check_text(text, "Lark grammar")
        return self._compiled("Lark grammar", LLMatcher.grammar_from_lark(_with_known_schemas(text)))

    def calls(self, grammar: CallGrammar) -> Grammar:
        """Calls of tools."""
        if not grammar.arguments:
            return self.lark(grammar.text)
        from llguidance import LLMatcher

        _check_text(grammar.text, "grammar of calls")
        lark = LLMatcher.grammar_from_lark(_with_known_schemas(grammar.text))
        places = {opening.encode(): Places(schema).root for opening, schema in grammar.arguments.items()}
        return self._compiled("grammar of calls", lark, _dumped(grammar.arguments), Calls(places))

    def llguidance(self, text: str) -> Grammar:
        """A grammar in llguidance's own JSON ({"grammars": [...]})."""
        _check_text(text, "llguidance grammar")
        return self._compiled("llguidance grammar", text)

    def choice(self, choices: Sequence[str]) -> Grammar:
        """One of some texts."""
        if isinstance(choices, str) or not choices or not all(isinstance(c, str) for c in choices):
            raise BadValue(f"choices must be a list of one or more texts, found {choices!r:.80}")
        return self.lark("start: " + "\n  | ".join(_lark_string(choice) for choice in choices))

    def _compiled(self, kind: str, grammar: str, variant: str = "", reading: Text | None = None) -> Grammar:
        """`reading` finds lists that are unique, beside the grammar; `variant` tells them apart."""
        key = (kind, grammar, variant)
        with self._lock:
            if (found := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return found
        made = self._compile(kind, grammar, reading)
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
        return made

    def _compile(self, kind: str, grammar: str, reading: Text | None) -> Grammar:
        from llguidance import LLMatcher

        if not self._trials.is_bounded(grammar):
            raise BadValue(f"a {kind} must be compiled in 2 seconds and 64 MB, this one is not; simplify it")
        vocabulary = self._built()

        def anew() -> LLMatcher:
            return on_deep_stack(lambda: LLMatcher(vocabulary, grammar, log_level=0, limits=self._limits))

        unique = None if reading is None else (self._repeats, reading)
        compiled = Grammar(anew, -(-self._n_vocab // 32) * 4, unique)
        state = compiled.start()
        _check(state.problem, kind)
        for warning in state.warnings:
            _check(warning, kind, always_unsupported=True)
        started = thread_time()
        is_open = state.probe()
        _check(state.problem, kind)
        if thread_time() - started > _LONGEST_MASK:
            raise BadValue(
                f"a {kind} must be simple enough to be followed at every token, this one takes "
                f"{thread_time() - started:.1f} seconds for the first; simplify it"
            )
        if not is_open and not state.is_complete:
            raise BadValue(f"this {kind} must allow some answer, found one that allows none; change it")
        return compiled

    def _built(self) -> LLTokenizer:
        with self._build_lock:
            return self._vocabulary

    @cached_property
    def _limits(self) -> LLParserLimits:
        from llguidance import LLParserLimits

        return LLParserLimits(**_LIMITS)

    @cached_property
    def _repeats(self) -> Repeats:
        return Repeats(_Words(self._tokenizer, self._n_vocab).tokens)

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        wrapped = TokenizerWrapper(_Words(self._tokenizer, self._n_vocab))
        end_ids = sorted(i for i in self._tokenizer.end_ids if i < self._n_vocab)
        return LLTokenizer(wrapped, eos_token=end_ids)


class _Words:
    """A vocabulary with the attributes that llguidance asks for."""

    def __init__(self, tokenizer: Tokenizer, n_vocab: int) -> None:
        n_known = min(tokenizer.vocab_size, n_vocab)
        self.tokens = [tokenizer.token_bytes(i) for i in range(n_known)] + [b""] * (n_vocab - n_known)
        self.special_token_ids = sorted(i for i in tokenizer.special_ids if i < n_vocab)
        self.bos_token_id = tokenizer.bos_id
        self.eos_token_id = min(tokenizer.end_ids)
        self._tokenizer = tokenizer
        # A vocabulary that puts a space before every text puts it before this line break.
        spaced = tokenizer.decode(tokenizer.encode("a", bos=False), continuing=True) != "a"
        self._before = tokenizer.encode("\n", bos=False) if spaced else []

    def __call__(self, text: str | bytes) -> list[int]:
        """Token ids of the beginning of a text inside an answer: there the next tokens are.

        Texts that are forced can be as long as a grammar, and this is asked at each of their tokens.
        """
        if isinstance(text, bytes):
            text = text.decode()
        text = text[:_LONGEST_FORCED]
        if not self._before:
            return self._tokenizer.encode(text, bos=False)
        return self._tokenizer.encode("\n" + text, bos=False)[len(self._before) :]


def _dumped(schema: Mapping[str, Any] | bool) -> str:
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadValue(f"a JSON schema must be plain data as JSON has it: {error}") from None


def _with_known_schemas(lark: str) -> str:
    """The grammar with each JSON schema in it as `prepared` and strict; what is no %json stays as it is."""
    parts, done = [], 0
    for found in _SCHEMA_IN_LARK.finditer(lark):
        try:
            schema, end = json.JSONDecoder().raw_decode(lark, found.end())
        except (ValueError, RecursionError):
            continue
        if found.start() >= done and isinstance(schema, dict):
            options = schema.get("x-guidance")
            options = {**_JSON_OPTIONS, **(options if isinstance(options, dict) else {}), **_STRICT}
            known = prepared(schema, "%json")
            assert isinstance(known, dict)
            parts += [lark[done : found.end()], _dumped({**known, "x-guidance": options})]
            done = end
    return "".join(parts) + lark[done:]


def _check_text(text: Any, kind: str) -> None:
    if not isinstance(text, str):
        raise BadValue(f"a {kind} must be a text, found a {type(text).__name__}")
    _check_length(text, kind)


def _check_length(text: str, kind: str) -> None:
    if len(text) > MAX_TEXT:
        raise BadValue(f"a {kind} must have {MAX_TEXT} characters at most, found {len(text)}; simplify it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadValue(f"a {kind} must be Unicode, found half a surrogate pair in it") from None


def _lark_string(text: str) -> str:
    """A text as Lark writes it between quotes."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _check(problem: str, kind: str, *, always_unsupported: bool = False) -> None:
    """Raise what llguidance says is wrong with a grammar, if anything."""
    if not problem:
        return
    if found := _KEYS.search(problem):
        names: Iterable[str] = json.loads(f"[{found[1]}]")
        raise Unsupported(
            f"answers cannot be held to every keyword of JSON Schema, found {', '.join(map(repr, names))}; "
            "take it out or say it in other words"
        )
    if always_unsupported or _NOT_RUN.search(problem):
        raise Unsupported(f"this {kind} needs what is not supported: {explanation(problem)}; change it")
    raise BadValue(f"a {kind} must be well formed and of bounded size: {explanation(problem)}; change it")
