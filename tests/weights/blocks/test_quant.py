"""Block formats against the gguf package, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as GgmlType

from puna.core import BadFile, BadValue, Unsupported
from puna.weights.blocks.formats import (
    FOREIGN_TYPES,
    FORMAT_OF_TYPE,
    FORMATS,
    GGUF_FORMATS,
    format_of_type,
    n_bytes,
)
from puna.weights.blocks.quant import dequantize, quantize, random_blocks

ENCODED = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]


def random_bytes(kind: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Any bits at all, but for scales, which are finite."""
    rng = np.random.default_rng(seed)
    fmt = FORMATS[kind]
    blocks = rng.integers(0, 256, n_bytes(kind, shape), dtype=np.uint8).view(fmt.layout)
    if fmt.layout.names is None:
        return quantize(rng.standard_normal(shape, dtype=np.float32), kind)
    if kind == "IQ1_M":  # a scale that is finite, in the top nibbles of its words
        blocks["scales"][:, 3] &= 0xBFFF
    for name in {"d", "m"} & set(fmt.layout.names):
        blocks[name] = (rng.standard_normal(blocks.size) * 10.0 ** rng.integers(-7, 4, blocks.size)).astype(
            "f2"
        )
    return blocks.view(np.uint8)


@pytest.mark.parametrize("kind", GGUF_FORMATS)
def test_layout_is_ggmls(kind: str) -> None:
    fmt = FORMATS[kind]
    assert GgmlType[kind] == fmt.type_id
    assert gguf.GGML_QUANT_SIZES[GgmlType[kind]] == (fmt.block_len, fmt.block_bytes)


@pytest.mark.parametrize("kind", GGUF_FORMATS)
@pytest.mark.parametrize("shape", [(256,), (3, 512), (37, 256), (2, 5, 768), (4200, 256)])
def test_dequantize_equals_gguf(kind: str, shape: tuple[int, ...]) -> None:
    data = random_bytes(kind, shape, seed=len(shape))
    ours = dequantize(data, kind, shape)
    row_bytes = n_bytes(kind, shape[-1:])
    with np.errstate(over="ignore"):
        theirs = gguf.quants.dequantize(data.reshape(*shape[:-1], row_bytes), GgmlType[kind])
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours.view(np.uint32), np.ascontiguousarray(theirs).view(np.uint32))


@pytest.mark.parametrize("kind", FORMATS)
def test_any_bits_decode_without_a_warning(kind: str) -> None:
    size = n_bytes(kind, (64, 256))
    data = np.random.default_rng(5).integers(0, 256, size, dtype=np.uint8)
    assert dequantize(data, kind, (64, 256)).shape == (64, 256)


@pytest.mark.parametrize("kind", ENCODED)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_quantize_equals_gguf(kind: str, scale: float) -> None:
    rng = np.random.default_rng(1)
    values = (rng.standard_normal((129, 512)) * scale).astype(np.float32)
    values[7] = 0
    values[8, :32] = 2.5
    values[9, :32] = np.arange(32) / 2  # halves: rounding
    values[10, :64] = -0.0
    theirs = gguf.quants.quantize(values, GgmlType[kind])
    np.testing.assert_array_equal(
        quantize(values, kind), np.ascontiguousarray(theirs).view(np.uint8).reshape(-1)
    )


def test_bf16_rounds_to_even_and_keeps_undefined() -> None:
    values = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F800001, 0xFF7FFFFF], np.uint32).view(
        np.float32
    )
    bits = quantize(values[:, None], "BF16").view(np.uint16)
    assert bits.tolist() == [0x3F80, 0x3F82, 0x3F81, 0x7FC0, 0xFF80]


@pytest.mark.parametrize("kind", ENCODED)
def test_quantize_is_stable_on_its_own_values(kind: str) -> None:
    values = np.random.default_rng(2).standard_normal((8, 64), dtype=np.float32)
    once = dequantize(quantize(values, kind), kind, values.shape)
    again = dequantize(quantize(once, kind), kind, values.shape)
    np.testing.assert_allclose(again, once, atol=2e-3)


@pytest.mark.parametrize("kind", FORMATS)
def test_random_blocks(kind: str) -> None:
    shape = (512, 1024)
    one = random_blocks(kind, shape, np.random.default_rng(3), std=0.02)
    two = random_blocks(kind, shape, np.random.default_rng(3), std=0.02)
    np.testing.assert_array_equal(one, two)
    assert one.size == n_bytes(kind, shape)
    values = dequantize(one, kind, shape)
    assert np.isfinite(values).all()
    assert values.std() == pytest.approx(0.02, rel=0.02)
    assert abs(values.mean()) < 0.002
    assert not np.array_equal(one, random_blocks(kind, shape, np.random.default_rng(4)))


def test_other_types_are_refused_by_name() -> None:
    assert not set(FOREIGN_TYPES) & set(FORMAT_OF_TYPE)
    for ggml_type in GgmlType:
        if ggml_type not in FORMAT_OF_TYPE:
            with pytest.raises(
                Unsupported, match=rf"type {ggml_type.name} of 'w' is not .* supported: F32, F16"
            ):
                format_of_type(ggml_type, "w")
    with pytest.raises(Unsupported, match="type number 4000000000 of 'w'"):
        format_of_type(4_000_000_000, "w")
    with pytest.raises(Unsupported, match=r"Q4_0_4_4 .* quantize the model again"):
        format_of_type(31, "w")


def test_bad_arguments() -> None:
    with pytest.raises(BadFile, match="rows of Q4_K must be multiples of 256 values, got 576"):
        n_bytes("Q4_K", (4, 576))
    with pytest.raises(BadValue, match="cannot quantize to Q4_K; encoders: F32"):
        quantize(np.zeros((1, 256), np.float32), "Q4_K")
