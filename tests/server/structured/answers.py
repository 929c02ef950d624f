"""Answers of a model of noise that is held to a grammar, without an engine: many more than one could serve.

Tokens are drawn at random from the mask, with a liking for those that close what is open, which grows with
the length of the answer. Where the mask allows the end, it ends now and then.
"""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from puna.core import BadValue
from puna.engine.grammar_state import Grammar
from puna.text.tokenizer import Tokenizer

_CLOSING = frozenset(b'"}],:0 ')


@lru_cache(maxsize=4)
def _closers(tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """Which tokens are made of nothing but what closes or separates, or are one character."""
    pieces = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    return np.array([bool(piece) and set(piece) <= _CLOSING for piece in pieces])


def answer(grammar: Grammar, tokenizer: Tokenizer, seed: int, limit: int = 1200) -> bytes | None:
    """A whole answer; None where it was not finished after `limit` tokens.

    Raises BadValue where no token is left, which no finished answer comes of.
    """
    rng, state, text = random.Random(seed), grammar.start(), bytearray()
    closers, hurry = _closers(tokenizer), rng.choice([0.2, 0.5, 0.9])
    for n in range(limit):
        if state.is_complete or (state.may_end and rng.random() < 0.3):
            return bytes(text)
        bits = np.unpackbits(state.masks(())[0], bitorder="little")[: tokenizer.vocab_size].astype(bool)
        bits[list(tokenizer.special_ids)] = False
        allowed = np.flatnonzero(bits)
        if not len(allowed):
            if state.may_end and not state.problem:
                return bytes(text)
            raise BadValue(f"no token is left after {bytes(text)!r:.300}: {state.problem}")
        closing = allowed[closers[allowed]]
        likes_end = len(closing) and rng.random() < hurry + n / limit
        token = int(rng.choice(closing if likes_end else allowed))
        state.accept(token)
        text += tokenizer.token_bytes(token)
    return None
