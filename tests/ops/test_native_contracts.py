"""What the compiled part is given by mistake is refused while a plan is recorded, and ends no process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from puna import _native

NOTHING = np.zeros(0, np.float32)
ROWS = np.zeros((2, 32), np.float32)


def plan(head_dim: int = 32, kv_heads: int = 2, **options: Any) -> Any:
    return _native.Plan("", 1, 4, 4, "bf16", 1, 1, kv_heads, head_dim, **options)


def weight(rows: int = 16, cols: int = 32, kind: str = "F32") -> Any:
    data = np.zeros(rows * cols * {"F32": 4, "BF16": 2}[kind], np.uint8)
    return _native.pack_matrix(_native.Arena(1 << 16), kind, rows, cols, data)


def step(p: Any, result: int, vocab: int, **more: Any) -> Any:
    one = np.zeros(1, np.int32)
    return p.step(result, vocab, one, np.array([1, 0, 1, 0], np.int32), one, **more)


def cross(p: Any, x: int, keys: Any) -> Any:
    p.cross_attend(x, 0, 2, 1.0, x, 0)
    return step(p, x, 32, seen=[(0, 1, [keys])])


# Buffers: `b` of 64 columns, `n` of 16.
CASES: dict[str, tuple[Callable[[Any, int, int], Any], str]] = {
    "no weight": (lambda p, b, n: p.linear(b, [None], [b], -1), "a weight is missing"),
    "fewer buffers than weights": (lambda p, b, n: p.linear(b, [weight(), weight()], [b], -1), "a buffer f"),
    "a wider weight": (lambda p, b, n: p.linear(n, [weight()], [n], -1), "linear: a weight .16, 32. from"),
    "a taller weight": (lambda p, b, n: p.linear(b, [weight(32)], [n], -1), "linear: a weight .32, 32. from"),
    "another residual": (lambda p, b, n: p.linear(b, [weight()], [n], b), "the residual differs"),
    "pairs of other shapes": (lambda p, b, n: p.gated(b, weight(16), weight(32), b), "one kind and shape"),
    "an input in another form": (
        lambda p, b, n: p.linear(b, [weight(kind="BF16")], [n], -1),
        "a form of its input that no op",
    ),
    "a narrow embedding": (lambda p, b, n: p.embed(weight(16, 32), None, n), "embed: the buffer has fewer"),
    "a narrow norm": (lambda p, b, n: p.rms_norm(b, np.ones(64, np.float32), 1e-5, n, 0), "rms_norm: buf"),
    "add": (lambda p, b, n: p.add(b, n, b), "add: buffers differ"),
    "add_scaled": (lambda p, b, n: p.add_scaled(b, b, 1.0, n), "add_scaled: buffers differ"),
    "swiglu": (lambda p, b, n: p.swiglu(b, n, b), "swiglu: buffers differ"),
    "select": (lambda p, b, n: p.select(b, n), "select: buffers differ"),
    "no layer": (lambda p, b, n: p.store(b, b, b, 1), "store: no such layer"),
    "narrow keys": (lambda p, b, n: p.store(b, n, b, 0), "store: keys and values"),
    "more heads than columns": (lambda p, b, n: p.attend(b, 0, 4, 1.0, 0, b, 0), "attend: 4 heads do"),
    "fewer heads than of keys": (lambda p, b, n: p.attend(b, 0, 1, 1.0, 0, b, 0), "attend: 1 heads do"),
    "cross-attention of no layer": (lambda p, b, n: p.cross_attend(b, -5, 2, 1.0, b, 0), "no such layer"),
    "no image": (lambda p, b, n: cross(p, b, None), "keys of an image are missing"),
    "8 bits of 16 columns": (lambda p, b, n: p.convert(n, 2), "no groups of 32"),
    "a wide result": (lambda p, b, n: step(p, n, 17), "a result of 17 columns from a buffer of 16"),
    "no heads of keys": (lambda p, b, n: plan(kv_heads=0), "sizes must be positive"),
    "no width of heads": (lambda p, b, n: plan(head_dim=0), "head_dim must be"),
    "no such local layer": (lambda p, b, n: plan(n_local_blocks=1, local_layers=[7]), "no such local layer"),
    "rows beyond int": (lambda p, b, n: _native.packed_bytes("Q8_0", 2**31 - 1, 32), "Q8_0 matrix"),
    "threads": (lambda p, b, n: _native.encode("Q8_0", ROWS, NOTHING, 10**6), "threads must be from 1"),
    "keys of images": (lambda p, b, n: _native.ImageOps(p).keys(2**31 - 1, 2**31 - 1), "keys: from 1"),
    "rows named twice": (
        lambda p, b, n: _native.ImageOps(p).attend(ROWS, ROWS, ROWS, np.zeros(2, np.int32), 1, 2, 1, 1.0),
        "every row once",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str) -> None:
    call, sentence = CASES[name]
    p = plan()
    with pytest.raises(ValueError, match=sentence):
        call(p, p.buffer(64, "all"), p.buffer(16, "all"))


def test_local_tables_begin_with_a_chunk_of_attention() -> None:
    p = _native.Plan("", 1, 4, 4, "bf16", 1, 8, 1, 32, 8, [0])
    x = p.buffer(32, "all")
    p.attend(x, 0, 1, 1.0, 64, x, 0)
    blocks, chunk = np.arange(8, dtype=np.int32), np.array([1, 70, 1, 0], np.int32)
    p.step(x, 32, np.zeros(1, np.int32), chunk, blocks, np.array([0, 64], np.int32))
    with pytest.raises(ValueError, match="malformed chunk"):
        p.step(x, 32, np.zeros(1, np.int32), chunk, blocks, np.array([0, 32], np.int32))
