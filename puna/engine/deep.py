"""Work that recurses as deeply as what somebody sent, on a stack of its own: it must not end the process.

The compilers of grammars walk chains of references and rules by recursion. A chain of some thousand, in a
text of a few kilobytes, overflows the stack that threads have by default, which nothing can catch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

# Address space, of which only what is used takes memory, until the work is done. Twice what the deepest
# chain takes that fits into grammar.MAX_TEXT.
_STACK = 512 << 20
_setting = threading.Lock()


def on_deep_stack(work: Callable[[], T]) -> T:
    """The result of `work`, which runs in a thread of its own; raises what it raises."""
    with ThreadPoolExecutor(1, thread_name_prefix="puna-deep") as pool:
        with _setting:
            usual = threading.stack_size(_STACK)
            try:
                result = pool.submit(work)  # starts the thread
            finally:
                threading.stack_size(usual)
        return result.result()
