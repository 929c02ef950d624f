"""Releases quantized by others against their own libraries, bit for bit.

compressed-tensors, bitsandbytes: matrices that they wrote and read (golden/make_quantized.py). AWQ, GPTQ and
fbgemm: random words, and the published formulas in torch's float16.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from golden.tiny import TINY

from puna.core import BadFile, BadInput, Batch, Chunk, Unsupported
from puna.model.names import from_hf, unpermute
from puna.model.rope import rope_table
from puna.weights.blocks.quant import dequantize, quantize
from puna.weights.blocks.tensor import RawTensor
from puna.weights.convert import convert
from puna.weights.load import open_checkpoint
from puna.weights.prequantized.config import read_quantization
from puna.weights.prequantized.matrices import put_together
from puna.weights.targets import Texts, plan

torch = pytest.importorskip("torch")
folders = pytest.importorskip("weights.quantized_folder")

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "quantized.npz")
FACTS = json.loads(str(GOLDEN["facts"]))["cases"]
KINDS = {
    "int4 group": "INT4", "int4 group zero": "INT4_MIN", "int4 channel": "INT4", "int4 small group": "BF16",
    "int8 group": "INT8", "int8 group zero": "F16", "int8 channel": "INT8", "fp8 tensor": "FP8",
    "fp8 channel": "FP8", "fp8 block": "FP8", "nf4 nested": "BF16", "nf4": "F16", "fp4": "F32",
}  # fmt: skip
DTYPES = {
    torch.float16: "F16", torch.float32: "F32", torch.int32: "I32", torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
}  # fmt: skip


def raw(name: str, kind: str, shape: Any, data: np.ndarray) -> RawTensor:
    return RawTensor(name, kind, tuple(shape), lambda: data)


def golden_parts(case: str) -> dict[str, RawTensor]:
    parts = FACTS[case]["parts"]
    return {
        f"m.{part}": raw(f"m.{part}", kind, shape, GOLDEN[f"{case}/{part}"])
        for part, (kind, shape) in parts.items()
    }


def torch_parts(parts: dict[str, Any]) -> dict[str, RawTensor]:
    return {
        f"m.{part}": raw(part, DTYPES[t.dtype], t.shape, t.contiguous().reshape(-1).view(torch.uint8).numpy())
        for part, t in parts.items()
    }


def read(config: dict[str, Any], parts: dict[str, RawTensor]) -> RawTensor:
    found = read_quantization({"quantization_config": config})
    assert found is not None
    (tensor,) = put_together(found, parts).values()
    return tensor


def same_after_rounding(tensor: RawTensor, kind: str, expected: np.ndarray) -> None:
    """Ours are exact; theirs are rounded to the type of the scales."""
    values = dequantize(tensor.data(), tensor.kind, tensor.shape)
    assert tensor.data().size == tensor.n_bytes
    rounded = dequantize(quantize(values, kind), kind, tensor.shape)
    np.testing.assert_array_equal(rounded, expected)


@pytest.mark.parametrize("case", FACTS)
def test_files_of_the_libraries(case: str) -> None:
    tensor = read(FACTS[case]["quantization_config"], golden_parts(case))
    assert tensor.kind == KINDS[case]
    same_after_rounding(tensor, FACTS[case]["values"], GOLDEN[case])


def test_compressed_tensors_in_another_order_of_groups() -> None:
    """`actorder: group` says the group of each input."""
    parts = golden_parts("int4 group")
    order = np.random.default_rng(0).permutation(np.arange(128) // 32)
    parts["m.weight_g_idx"] = raw("", "I32", (128,), order.astype("<i4").view(np.uint8))
    tensor = read(FACTS["int4 group"]["quantization_config"], parts)
    codes = GOLDEN["int4 group/weight_packed"].reshape(8, -1)
    codes = np.stack((codes & 15, codes >> 4), -1).reshape(8, 128).astype(np.float32) - 8
    scales = dequantize(GOLDEN["int4 group/weight_scale"], "BF16", (8, 4))
    same_after_rounding(
        tensor, "BF16", dequantize(quantize(codes * scales[:, order], "BF16"), "BF16", (8, 128))
    )


def test_older_zeros_of_compressed_tensors() -> None:
    """Before 0.10 the zeros of groups were not packed."""
    case = "int4 group zero"
    words = GOLDEN[f"{case}/weight_zero_point"].view("<u4").reshape(2, 2)
    zeros = ((words[:, None] >> np.arange(0, 32, 4)[:, None]) & 15).reshape(16, 2)[:12].astype(np.int8) - 8
    parts = golden_parts(case)
    parts["m.weight_zero_point"] = raw("", "I8", (12, 2), zeros.astype(np.int8).view(np.uint8).reshape(-1))
    tensor = read(FACTS[case]["quantization_config"], parts)
    same_after_rounding(tensor, "F16", GOLDEN[case])


def test_awq() -> None:
    torch.manual_seed(1)
    parts, expected = folders.awq((64, 96))
    tensor = read(folders.METHODS["awq"][1], torch_parts(parts))
    assert tensor.kind == "INT4_MIN"
    same_after_rounding(tensor, "F16", expected.float().numpy())


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("bits", "symmetric", "shuffled", "kind"),
    [
        (4, True, False, "INT4"),
        (4, False, False, "INT4_MIN"),
        (4, False, True, "F16"),
        (8, True, False, "INT8"),
        (8, False, False, "F16"),
        (2, False, False, "INT8"),
    ],
)
def test_gptq(version: int, bits: int, symmetric: bool, shuffled: bool, kind: str) -> None:
    torch.manual_seed(2)
    parts, expected = folders.gptq((64, 96), bits, version, symmetric, shuffled)
    config = {"quant_method": "gptq", "bits": bits, "group_size": 32, "sym": symmetric}
    if version == 2:
        config["checkpoint_format"] = "gptq_v2"
    tensor = read(config, torch_parts(parts))
    assert tensor.kind == kind
    same_after_rounding(tensor, "F16", expected.float().numpy())


@pytest.mark.parametrize("scale_shape", [(), (1,), (64, 1), (64,), (2, 3)])
def test_fp8(scale_shape: tuple[int, ...]) -> None:
    """Every number of E4M3 but NaN; a scale for all, for an output, for a block."""
    codes = np.random.default_rng(0).permutation(np.arange(64 * 96) % 254)
    codes = np.where(codes < 127, codes, codes + 1).astype(np.uint8).reshape(64, 96)
    weight = torch.from_numpy(codes).view(torch.float8_e4m3fn)
    scale = torch.rand(scale_shape) + 0.5
    whole = scale.repeat_interleave(32, 0).repeat_interleave(32, 1) if scale_shape == (2, 3) else scale
    expected = weight.float() * (whole[:, None] if scale_shape == (64,) else whole)
    config = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    name = "weight_scale_inv" if scale_shape == (2, 3) else "weight_scale"
    tensor = read(config, torch_parts({"weight": weight, name: scale}))
    assert tensor.kind == "FP8"
    same_after_rounding(tensor, "F32", expected.numpy())


def test_a_bias_of_zeros_is_left_out() -> None:
    parts, _ = folders.awq((64, 96))
    config = folders.METHODS["awq"][1]
    assert read(config, torch_parts(parts | {"bias": torch.zeros(64)})).name == "m.weight"
    with pytest.raises(Unsupported, match=r"'m\.bias' is not zero, and no Llama has a bias"):
        read(config, torch_parts(parts | {"bias": torch.ones(64)}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "eetq"}, "quantized by 'eetq'.*, and Puna reads compressed-tensors, "),
        ({"quant_method": "gtpq"}, "'gtpq'; did you mean 'gptq'"),
        ({"quant_method": None}, "quantized by None"),
        ("awq", "quantization_config of config.json must be an object"),
        (
            {"quant_method": "bitsandbytes", "load_in_8bit": True},
            "load_in_4bit .* is False, and Puna reads True",
        ),
        ({"quant_method": "gptq"}, "bits of quantization_config is None, and Puna reads 2, 4, 8"),
        ({"quant_method": "gptq", "bits": 3}, "bits of quantization_config is 3"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format .*'marlin'"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size .* a count or -1, found 0"),
        ({"quant_method": "awq", "version": "gemv"}, "version .* 'gemv', and Puna reads gemm"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size .* two counts"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "format .* 'marlin-24'"),
        ({"quant_method": "compressed-tensors"}, "config_groups must be an object, found None"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 3}}}},
            "num_bits .* is 3, and Puna reads 4, 8",
        ),
        (
            {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}},
            "format .* 'sparse-24-bitmask', and Puna reads dense",
        ),
    ],
)
def test_configs_that_are_refused(config: Any, message: str) -> None:
    with pytest.raises(BadFile, match=message):
        read_quantization({"quantization_config": config})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qzeros": None}, r"'m' needs qzeros \(I32 of shape \(3, 8\)\), found none"),
        ({"scales": torch.ones(2, 64).half()}, r"'m\.scales' must be F16 or .* shape \(3, 64\), found F16"),
        ({"qweight": torch.ones(96, 8)}, r"'m\.qweight' must be I32 of shape \(any, any\), found F32"),
        ({"qweight": torch.ones(0, 8, dtype=torch.int32)}, r"'m\.qweight' must be I32"),
    ],
)
def test_parts_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    parts, _ = folders.awq((64, 96))
    changed = {part: t for part, t in {**parts, **change}.items() if t is not None}
    with pytest.raises(BadFile, match=message):
        read(folders.METHODS["awq"][1], torch_parts(changed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight.absmax": None}, r"'m\.weight' needs 'm\.weight\.absmax' \(260 numbers of U8\), found none"),
        ({"weight.quant_map": (b"", [0])}, "16 numbers of F32.*found F32 of shape"),
        ({"weight.quant_state.bitsandbytes__nf4": (b"{", [1])}, "must be JSON, and is not"),
        ({"weight.quant_state.bitsandbytes__nf4": (b"{}", [2])}, "blocksize .* power of two, found None"),
        (
            {"weight.quant_state.bitsandbytes__nf4": (b'{"blocksize": 64, "shape": [-1, 2]}', [35])},
            "must state a shape and a dtype of bfloat16, float16, float32",
        ),
        ({"weight.quant_state.bitsandbytes__nf4": None}, "holds U8 and is no 4-bit matrix of bitsandbytes"),
    ],
)
def test_bitsandbytes_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    parts = golden_parts("nf4 nested")
    for part, changed in change.items():
        tensor = parts.pop(f"m.{part}")
        if changed is not None:
            data = np.frombuffer(changed[0], np.uint8)
            parts[f"m.{part}"] = raw(f"m.{part}", tensor.kind, changed[1], data)
    with pytest.raises(BadFile, match=message):
        read(FACTS["nf4 nested"]["quantization_config"], parts)


def test_data_that_contradicts() -> None:
    parts, _ = folders.gptq((64, 96), symmetric=False)
    config = folders.METHODS["gptq"][1]
    with pytest.raises(BadFile, match=r"'m\.qzeros' must all be 8, as sym of quantization_config says"):
        read(config, torch_parts(parts)).data()
    parts["g_idx"][5] = 3
    with pytest.raises(BadFile, match=r"'m\.g_idx' must name groups 0 to 2"):
        read(config, torch_parts(parts))
    parts, _ = folders.fbgemm((64, 96))
    parts["weight"].view(torch.uint8)[3, 3] = 0xFF
    with pytest.raises(BadFile, match=r"'m\.weight' holds values that are not a number"):
        read({"quant_method": "fbgemm_fp8"}, torch_parts(parts)).data()
    with pytest.raises(BadFile, match="'m' needs weight_scale"):
        read(config, torch_parts({"weight": parts["weight"]}))
    with pytest.raises(Unsupported, match=r"'m\.weight' holds I32, which gptq has no use for there"):
        read(config, torch_parts({"weight": torch.ones(2, 2, dtype=torch.int32)}))


@pytest.mark.parametrize("method", folders.METHODS)
def test_whole_folders_run(method: str, tmp_path: Path) -> None:
    """Values under our names and in our order of rows, and the same logits from all executors."""
    from puna.runtime.native import BLOCK_TOKENS, NativeExecutor
    from puna.runtime.reference import ReferenceExecutor
    from puna.runtime.torch import TorchExecutor

    tiny = TINY["llama2"]
    expected = folders.write_quantized(tiny, tmp_path, method)
    with open_checkpoint(tmp_path) as checkpoint:
        config = checkpoint.config
        assert checkpoint.quantization.startswith(method)
        for name, values in expected.items():
            ours = from_hf(name)
            assert ours is not None
            array = values.float().numpy()
            if ours.endswith((".wq", ".wk")):
                array = unpermute(array, config.n_heads if ours.endswith("wq") else config.n_kv_heads)
            kind = "F32" if method == "fbgemm_fp8" else "F16"
            same_after_rounding(checkpoint.tensors[ours], kind, array)
        batch = Batch([Chunk(tiny.tokens()[:32], 0, [0], 2)])
        rope = rope_table(config)
        native = NativeExecutor(config, checkpoint.tensors, rope, cache_tokens=64, cache_type="f32")
        arrays = {n: dequantize(t.data(), t.kind, t.shape) for n, t in checkpoint.tensors.items()}
        reference = ReferenceExecutor(config, arrays, n_blocks=2, block_size=BLOCK_TOKENS)
        got, wanted = native.step(batch), reference.step(batch)
        native.close()
        on_torch = TorchExecutor(config, checkpoint.tensors, rope, cache_tokens=64, device="cpu")
        same = on_torch.step(batch)
        on_torch.close()
    assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()
    np.testing.assert_allclose(same, wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("method", folders.METHODS)
def test_conversion_needs_a_dtype(method: str, tmp_path: Path) -> None:
    folders.write_quantized(TINY["llama2"], tmp_path / "m", method)
    texts = Texts({}, {}, {})
    with open_checkpoint(tmp_path / "m") as checkpoint:
        with pytest.raises(
            Unsupported, match=rf"\({method}.*\), which GGUF has no type for; add --dtype bf16"
        ):
            plan(checkpoint, "gguf", texts, name="m")
        convert(plan(checkpoint, "gguf", texts, name="m", dtype="F32"), tmp_path / "m.gguf")
        with open_checkpoint(tmp_path / "m.gguf") as converted:
            for name, tensor in checkpoint.tensors.items():
                values = dequantize(tensor.data(), tensor.kind, tensor.shape)
                made = converted.tensors[name]
                np.testing.assert_array_equal(dequantize(made.data(), made.kind, made.shape), values)


def test_show_says_how_a_release_is_quantized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from puna.cli.main import main

    folders.write_quantized(TINY["llama2"], tmp_path, "gptq")
    assert main(["show", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["quantization"] == "gptq, 4 bits, groups of 32"
    assert {row["kind"] for row in report["tensors"]} == {"INT4", "F16"}
    assert main(["show", str(tmp_path)]) == 0
    assert "gptq, 4 bits, groups of 32" in capsys.readouterr().out


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    with open_checkpoint(path.parent) as checkpoint:
        yield SimpleNamespace(raw_tensors=checkpoint.tensors.values)


@pytest.mark.parametrize("method", folders.METHODS)
def test_damaged_folders_open_or_are_refused(method: str, tmp_path: Path) -> None:
    from weights.damage import read_all

    folders.write_quantized(TINY["llama2"], tmp_path, method)
    statuses: Counter[str] = Counter()
    for case in range(120):
        rng = np.random.default_rng([3, case])
        path = tmp_path / ("config.json" if case % 3 == 0 else "model.safetensors")
        whole = path.read_bytes()
        damaged = bytearray(whole)
        within = 8 + int.from_bytes(whole[:8], "little") if case % 3 == 1 else len(whole)
        for _ in range(int(rng.integers(1, 3))):
            damaged[int(rng.integers(within))] = int(rng.integers(32, 127))
        path.write_bytes(damaged)
        try:
            read_all(opened, tmp_path / "model.safetensors", statuses, 1 << 23, case)
        except BadInput:
            statuses["refused"] += 1
        path.write_bytes(whole)
    assert statuses["opened"] > 20
    assert statuses["refused"] > 40


def test_recoded_blocks_keep_every_value() -> None:
    from puna.weights.blocks.formats import GGUF_FORMATS, n_bytes
    from puna.weights.blocks.recode import kernel_kind, recode

    rng = np.random.default_rng(4)
    for kind in GGUF_FORMATS:
        shape = (7, 512)
        data = rng.integers(0, 256, n_bytes(kind, shape), dtype=np.uint8)
        made = recode(data, kind)
        np.testing.assert_array_equal(
            dequantize(made, kernel_kind(kind), shape), dequantize(data, kind, shape), err_msg=kind
        )
