"""Compiles grammars of strangers once, in a process that may die of them.

Run as a script, with llguidance and nothing of Puna. Input is a line of JSON with the names of the model's
control tokens, and then one line of JSON for each grammar; the answer is a byte for each, whatever the
compiler says of it, as that is asked again where it counts. A grammar that takes too long, or too much memory
or stack, ends the process instead.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
from collections.abc import Callable
from math import ceil

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

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


def _limit_memory() -> None:
    """Bound what is taken from now on: writable memory, not the addresses that allocators reserve."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[5]) * resource.getpagesize()
    except OSError:  # no such file on this system: then only time is bounded
        return
    _limit(resource.RLIMIT_DATA, used + _STACK + _MEMORY)


def _limit(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main() -> None:
    names, limits = json.loads(sys.stdin.buffer.readline())
    vocabulary = LLTokenizer(TokenizerWrapper(_Bytes(names)), eos_token=[256])
    bounded = LLParserLimits(**limits)
    threading.stack_size(_STACK)
    _limit(resource.RLIMIT_CORE, 0)
    while line := sys.stdin.buffer.readline():
        grammar = json.loads(line)
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = ceil(used.ru_utime + used.ru_stime) + _SECONDS
        _limit(resource.RLIMIT_CPU, seconds)
        _limit_memory()
        _on_deep_stack(lambda: _try(vocabulary, bounded, grammar))  # noqa: B023 - done before the next
        sys.stdout.buffer.write(b".")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
