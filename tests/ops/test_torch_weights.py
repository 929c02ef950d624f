"""Kinds of weight in torch: the numbers of block formats to the bit, 8-bit floats, and what torch multiplies
itself."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from puna.core import BadValue  # noqa: E402
from puna.ops.cases import TOLERANCES, LinearCase, error  # noqa: E402
from puna.ops.torch_weights import CodedWeight, Fp8Weight, PackedWeight, int4_is_right, pack  # noqa: E402
from puna.runtime.torch_weights import WeightType, check_device, load_weight, weight_bytes  # noqa: E402
from puna.weights.blocks.codes import code_bits, has_codes  # noqa: E402
from puna.weights.blocks.formats import FORMATS  # noqa: E402
from puna.weights.blocks.quant import dequantize, quantize, random_blocks  # noqa: E402
from puna.weights.blocks.tensor import RawTensor  # noqa: E402

CPU = torch.device("cpu")
CODED = [kind for kind in FORMATS if has_codes(kind)]
SHAPE = (48, 512)
INT4 = WeightType("int4", torch.float32)


def raw(kind: str, shape: tuple[int, ...] = SHAPE, name: str = "layers.0.w1") -> RawTensor:
    data = random_blocks(kind, shape, np.random.default_rng(1))
    return RawTensor(name, kind, shape, lambda: data)


def values(tensor: RawTensor) -> np.ndarray:
    return dequantize(tensor.data(), tensor.kind, tensor.shape)


def table(kind: str) -> CodedWeight:
    """Tables are looked up, so they stay in the order of their codes."""
    return load_weight(raw(kind, name="tok_embeddings"), INT4, CPU)


@pytest.mark.parametrize("kind", CODED)
def test_codes_are_the_numbers_of_the_file(kind: str) -> None:
    weight = table(kind)
    np.testing.assert_array_equal(weight.floats(torch.float32).numpy(), values(raw(kind)))
    np.testing.assert_array_equal(
        weight.rows(torch.tensor([5, 0, 47]), torch.float32).numpy(), values(raw(kind))[[5, 0, 47]]
    )
    assert weight.is_packed == (code_bits(kind) == 4)
    per_weight = weight.n_bytes / (SHAPE[0] * SHAPE[1])
    most = {"INT4_MIN": 0.75, "INT8_16": 1.25}.get(kind, 0.65 if weight.is_packed else 1.13)
    assert per_weight <= most
    assert weight.n_bytes <= weight_bytes(raw(kind), "int4")


@pytest.mark.parametrize("kind", ["INT4", "INT4_MIN", "INT8", "INT8_16"])
def test_where_nobody_asks_releases_keep_their_numbers(kind: str) -> None:
    for default in ("f32", "bf16"):
        kept = load_weight(raw(kind), WeightType.of("", default), CPU)
        assert isinstance(kept, CodedWeight | PackedWeight)
        assert kept.n_bytes <= weight_bytes(raw(kind), default, is_default=True)
        asked = load_weight(raw(kind), WeightType.of(default, "f16"), CPU)
        assert isinstance(asked, torch.Tensor)
        assert asked.nbytes == weight_bytes(raw(kind), default)
    kept = load_weight(raw(kind, name="tok_embeddings"), WeightType.of("", "f32"), CPU)
    np.testing.assert_array_equal(kept.floats(torch.float32).numpy(), values(raw(kind)))
    adapter = load_weight(raw("F32", name="layers.0.wq_down"), WeightType.of("int4", "f32"), CPU)
    assert isinstance(adapter, torch.Tensor)


@pytest.mark.parametrize(("kind", "parts"), [("INT4", 1), ("INT4_MIN", 2), ("INT8", 1), ("FP8", 1)])
@pytest.mark.parametrize(("group", "n_groups"), [(32, 16), (64, 8), (128, 4), (256, 2), (512, 1)])
def test_scales_of_a_release_are_stored_once(kind: str, parts: int, group: int, n_groups: int) -> None:
    """Blocks of 32 repeat them; torch's 4-bit products know groups of 256 at most."""
    tensor = raw(kind, name="tok_embeddings")
    blocks = tensor.data().copy().view(FORMATS[kind].layout).reshape(SHAPE[0], -1)
    for field in ("d", "m")[:parts]:
        blocks[field] = np.repeat(blocks[field][:, :: group // 32], group // 32, axis=1)
    grouped = RawTensor(tensor.name, kind, SHAPE, lambda: blocks.reshape(-1).view(np.uint8))
    weight = load_weight(grouped, WeightType.of("", "f32"), CPU)
    four_bits = kind.startswith("INT4")
    assert weight.scale_EG.shape == (SHAPE[0], max(n_groups, 2) if four_bits else n_groups)
    np.testing.assert_array_equal(weight.floats(torch.float32).numpy(), values(grouped))


@pytest.mark.parametrize("kind", ["f32", "bf16", "fp8", "int4"])
def test_8_bit_floats_of_a_release_are_kept(kind: str) -> None:
    """Unless plain floats are asked for."""
    tensor = raw("FP8")
    for default in (True, False):
        if default or kind in ("fp8", "int4"):
            wanted = WeightType.of("" if default else kind, kind, "f32")
            weight = load_weight(tensor, wanted, CPU)
            assert isinstance(weight, Fp8Weight)
            np.testing.assert_array_equal(weight.floats(torch.float32).numpy(), values(tensor))
            x = LinearCase("FP8", 5, *SHAPE).x_TD()
            got = weight.linear(torch.from_numpy(x)).numpy()
            unit = LinearCase.unit(x, values(tensor))
            assert error(got, x @ values(tensor).T, unit) <= TOLERANCES["linear", "float32"]
            assert weight.n_bytes <= weight_bytes(tensor, kind, default)
    stack = load_weight(raw("FP8", (3, 16, 64)), WeightType.of("", "f32"), CPU)
    assert torch.equal(stack[1].floats(torch.float32), stack.floats(torch.float32)[1])


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q8_0", "Q3_K"])
@pytest.mark.parametrize("n_tokens", [1, 7])
def test_linear(kind: str, n_tokens: int) -> None:
    case = LinearCase(kind, n_tokens, *SHAPE)
    x, w = case.x_TD(), values(raw(kind))
    weight = load_weight(raw(kind), INT4, CPU)
    got = weight.linear(torch.from_numpy(x)).numpy()
    assert error(got, x @ w.T, case.unit(x, w)) <= TOLERANCES["linear", "float32"]


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K"])
@pytest.mark.parametrize("n_tokens", [1, 7])
def test_torchs_own_product(kind: str, n_tokens: int) -> None:
    """In bfloat16, where a CPU has a fast one too."""
    case = LinearCase(kind, n_tokens, *SHAPE)
    x, w = case.x_TD(), values(raw(kind))
    weight = load_weight(raw(kind), WeightType("int4", torch.bfloat16), CPU)
    assert isinstance(weight, PackedWeight) == int4_is_right(CPU, torch.bfloat16, 32)
    got = weight.linear(torch.from_numpy(x).bfloat16()).float().numpy()
    assert error(got, x @ w.T, case.unit(x, w)) <= 2 * TOLERANCES["linear", "bf16"]  # weights are rounded too


def test_what_torchs_own_product_does_not_fit() -> None:
    assert not int4_is_right(CPU, torch.float32, 32)
    odd = load_weight(raw("Q4_0", (7, 96)), WeightType("int4", torch.bfloat16), CPU)
    assert isinstance(odd, CodedWeight)  # 7 rows fit no kernel
    assert isinstance(pack(table("Q8_0"), torch.bfloat16), CodedWeight)


def test_experts_are_parts_of_a_stack() -> None:
    stack = raw("Q4_K", (3, 16, 256))
    for weight in (load_weight(stack, INT4, CPU), load_weight(stack, WeightType("fp8", torch.float32), CPU)):
        one = weight[1].floats(torch.float32)
        assert one.shape == (16, 256)
        assert torch.equal(one, weight.floats(torch.float32)[1])


@pytest.mark.parametrize(("name", "kind"), [("layers.0.w1", "Q4_1"), ("output", "Q8_0")])
def test_floats_are_rounded_as_ggufs_formats(name: str, kind: str) -> None:
    w = np.random.default_rng(0).standard_normal((3, 64), np.float32)
    tensor = RawTensor(name, "F32", w.shape, partial(quantize, w, "F32"))
    got = load_weight(tensor, INT4, CPU).floats(torch.float32).numpy()
    np.testing.assert_array_equal(got, dequantize(quantize(w, kind), kind, w.shape))


def test_fp8_is_the_nearest() -> None:
    """Within half a unit of three bits of fraction; exact in bfloat16; zeros stay zeros."""
    w = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 8)[:, None]
    w[3] = 0
    weight = Fp8Weight.of(w)
    got = weight.floats(torch.float32)
    largest = w.abs().amax(1, keepdim=True)
    assert bool(((got - w).abs() <= w.abs() / 16 + largest * 2.0**-17).all())
    assert torch.equal(weight.floats(torch.bfloat16).float(), got)
    assert weight.n_bytes == 8 * 64 + 8 * 4
    ids = torch.tensor([2, 7])
    assert torch.equal(weight.rows(ids, torch.float32), got[ids])


def test_what_a_device_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise TypeError("no such type here\nand more")

    for kind in ("bf16", "fp8", "int4"):
        check_device(WeightType.of(kind, "f32"), CPU)
    monkeypatch.setattr(torch.Tensor, "to", refuse)
    with pytest.raises(BadValue, match=r"fp8 cannot be kept on cpu \(torch says: no such type here\); use"):
        check_device(WeightType.of("fp8", "f32"), CPU)


def test_a_kind_that_is_none() -> None:
    with pytest.raises(BadValue, match=r"one of bf16, f16, f32, fp8, int4, got 'int5'; did you mean 'int4'"):
        WeightType.of("int5", "f32")
    assert WeightType.of("fp8", "f32").dtype == torch.bfloat16
    assert WeightType.of("int4", "f32", "f32").dtype == torch.float32
    assert WeightType.of("", "f32") == WeightType("f32", torch.float32, is_default=True)
