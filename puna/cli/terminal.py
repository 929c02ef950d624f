"""Text of a model on its way to a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping

# An answer must not move the cursor, set the title or paste into the shell: the control characters of ASCII
# and Latin-1 but for tab and newline, and those that turn the direction of writing.
_SHOWN: Mapping[int, str] = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


def harmless(text: str) -> str:
    """`text` with control characters written out."""
    return text.translate(_SHOWN)


def write(text: str) -> None:
    """To stdout at once; made harmless on a terminal, as it is in a pipe."""
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def rate(n_tokens: int, tok_s: float) -> str:
    """`120 tokens, 310 tok/s`"""
    unit = "token" if n_tokens == 1 else "tokens"
    return f"{n_tokens:,} {unit}, {tok_s:,.0f} tok/s" if tok_s else f"{n_tokens:,} {unit}"
