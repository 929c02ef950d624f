"""Compiles grammars of strangers once, in a process that may die of them (puna/text/confined.py).

It is told the names of the model's control tokens and the limits of the parser, and then one grammar after
another; the answer is true for each, whatever the compiler says of it, as that is asked again where it
counts. A grammar that takes too long, or too much memory or stack, ends the process instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from puna.text.confined import first_line, serve

_SECONDS = 2  # of CPU time; the system counts whole ones
_MEMORY = 64 << 20  # bytes for one grammar
_STACK = 512 << 20


class _Bytes:
    """A vocabulary of bytes and control tokens."""

    def __init__(self, names: list[str]) -> None:
        self.tokens = [bytes([i]) for i in range(256)] + [name.encode() for name in names]
        self.special_token_ids = list(range(256, len(self.tokens)))
        self.bos_token_id = None
        self.eos_token_id = 256

    def __call__(self, text: str | bytes) -> list[int]:
        return list((text if isinstance(text, bytes) else text.encode())[:256])


def _try(vocabulary: LLTokenizer, limits: LLParserLimits, grammar: str) -> None:
    matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()


def _on_deep_stack(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def main() -> None:
    names, limits = first_line()
    vocabulary = LLTokenizer(TokenizerWrapper(_Bytes(names)), eos_token=[256])
    bounded = LLParserLimits(**limits)
    threading.stack_size(_STACK)

    def answer(grammar: str) -> bool:
        _on_deep_stack(lambda: _try(vocabulary, bounded, grammar))
        return True

    serve(answer, _SECONDS, lambda _: _STACK + _MEMORY)


if __name__ == "__main__":
    main()
