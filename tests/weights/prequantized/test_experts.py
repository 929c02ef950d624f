"""Llama 4's experts in 8-bit floats: as transformers and compressed-tensors have them, and Meta's own files.

Logits are those of transformers' model with the dequantized numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

from golden.tiny import TINY  # noqa: E402
from weights.hf_folder import write_hf  # noqa: E402
from weights.seeing import LLAMA4_TEXT  # noqa: E402

from puna.core import BadFile, Batch, Chunk, Unsupported  # noqa: E402
from puna.model.rope import rope_table  # noqa: E402
from puna.runtime.native import NativeExecutor  # noqa: E402
from puna.runtime.reference import ReferenceExecutor  # noqa: E402
from puna.runtime.torch import TorchExecutor  # noqa: E402
from puna.weights.blocks.quant import dequantize  # noqa: E402
from puna.weights.convert import convert  # noqa: E402
from puna.weights.load import Checkpoint, open_checkpoint  # noqa: E402
from puna.weights.targets import Texts, plan  # noqa: E402

NO_TEXTS = Texts({}, {}, {})
IDS = [1, 9, 33, 4, 60, 21, 7, 45]
FBGEMM = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
COMPRESSED = {
    "quant_method": "compressed-tensors", "format": "float-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"type": "float", "num_bits": 8}}},
}  # fmt: skip
LAYOUTS = {"fused": FBGEMM, "one by one": COMPRESSED}
EXPERTS = "model.layers.{}.feed_forward.experts"

Parts = dict[str, torch.Tensor]


def per_row(w: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
    """What fbgemm's quantize_fp8_per_row gives: [rows, columns] and a scale for each row."""
    scale = w.float().abs().amax(-1).clamp_min(1e-12) / 448
    return (w.float() / scale[..., None]).to(torch.float8_e4m3fn), scale


@pytest.fixture(scope="module")
def model() -> Any:
    config = transformers.Llama4TextConfig(**{**LLAMA4_TEXT, "num_attention_heads": 2, "head_dim": 32})
    torch.manual_seed(0)
    made = transformers.Llama4ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.uniform_(-0.2, 0.2)
    return made.eval()


def write(model: Any, layout: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """A folder with experts of 8 bits -> the state_dict with what they stand for."""
    folder.mkdir()
    values = {name: t.detach().clone() for name, t in model.state_dict().items()}
    stored = dict(values)
    for layer in (1, 3):
        fused = by_transformers(model, layer, monkeypatch)
        name = EXPERTS.format(layer)
        if layout == "fused":
            stored |= fused
        for part, swapped in (("gate_up_proj", (1, 2)), ("down_proj", (1, 2))):
            codes, scale = fused[f"{name}.{part}"], fused[f"{name}.{part}_scale"]
            rows = codes.float().transpose(*swapped) * scale.reshape(len(codes), -1, 1)
            values[f"{name}.{part}"] = rows.transpose(*swapped).contiguous()
            if layout != "fused":
                del stored[f"{name}.{part}"]
                stored |= one_by_one(name, part, codes.transpose(1, 2), scale.reshape(len(codes), -1))
    safetensors.save_file({n: t.contiguous() for n, t in stored.items()}, folder / "model.safetensors")
    config = {**model.config.to_dict(), "quantization_config": LAYOUTS[layout]}
    (folder / "config.json").write_text(json.dumps(config))
    return values


def by_transformers(model: Any, layer: int, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """Codes and scales as transformers' quantizer turns its experts into FbgemmFp8Llama4TextExperts."""
    from transformers.integrations import fbgemm_fp8

    monkeypatch.setattr(fbgemm_fp8, "quantize_fp8_per_row", per_row, raising=False)
    holder = torch.nn.Module()
    holder.experts = fbgemm_fp8.FbgemmFp8Llama4TextExperts(model.config)
    quantizer, parts = fbgemm_fp8.FbgemmFp8Quantize(None), {}
    for part in ("gate_up_proj", "down_proj"):
        weight = getattr(model.model.layers[layer].feed_forward.experts, part).detach()
        made = quantizer.convert({f"experts.{part}": [weight]}, holder)
        for key, tensor in made.items():
            shape = getattr(holder.experts, key.removeprefix("experts.")).shape
            assert tensor.shape == shape
            parts[key.replace("experts", EXPERTS.format(layer))] = tensor.detach()
    return parts


def one_by_one(name: str, part: str, codes_EOI: Any, scale_EO: Any) -> Parts:
    halves = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}[part]
    parts: Parts = {}
    for e in range(len(codes_EOI)):
        for half, codes, scale in zip(
            halves, codes_EOI[e].chunk(len(halves)), scale_EO[e].chunk(len(halves)), strict=True
        ):
            parts[f"{name}.{e}.{half}.weight"] = codes
            parts[f"{name}.{e}.{half}.weight_scale"] = scale[:, None]
    return parts


def logits(model: Any, values: Parts) -> np.ndarray:
    kept = {name: t.clone() for name, t in model.state_dict().items()}
    model.load_state_dict(values)
    with torch.inference_mode():
        found: np.ndarray = model(torch.tensor([IDS])).logits[0].numpy()
    model.load_state_dict(kept)
    return found


def arrays(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {n: dequantize(t.data(), t.kind, t.shape) for n, t in checkpoint.tensors.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_executor_gives_transformers_logits(
    layout: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits(model, write(model, layout, tmp_path / "m", monkeypatch))
    batch = Batch([Chunk(IDS, 0, [0], len(IDS))])
    with open_checkpoint(tmp_path / "m") as checkpoint:
        cfg = checkpoint.config
        kinds = {n: t.kind for n, t in checkpoint.tensors.items() if "experts" in n}
        assert len(kinds) == 6
        assert set(kinds.values()) == {"FP8"}
        reference = ReferenceExecutor(cfg, arrays(checkpoint), n_blocks=1)
        np.testing.assert_allclose(reference.step(batch), expected, atol=1e-4)
        on_torch = TorchExecutor(cfg, checkpoint.tensors, rope_table(cfg), cache_tokens=32, device="cpu")
        np.testing.assert_allclose(on_torch.step(batch), expected, atol=1e-4)
        native = NativeExecutor(cfg, checkpoint.tensors, rope_table(cfg), cache_tokens=32, cache_type="f32")
        assert np.abs(native.step(batch) - expected).max() < 0.02 * np.abs(expected).max()
        native.close()


@pytest.mark.parametrize("form", ["hf", "gguf", "meta"])
def test_conversion_keeps_the_numbers(
    form: Any, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(model, "fused", tmp_path / "m", monkeypatch)
    with open_checkpoint(tmp_path / "m") as checkpoint:
        with pytest.raises(Unsupported, match=r"is FP8.*add --dtype"):
            plan(checkpoint, form, NO_TEXTS)
        made = tmp_path / ("m.gguf" if form == "gguf" else form)
        convert(plan(checkpoint, form, NO_TEXTS, name="m", dtype="F32"), made)
        with open_checkpoint(made) as converted:
            found, expected = arrays(converted), arrays(checkpoint)
    assert found.keys() - expected.keys() <= {"rope_factors"}
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def refused(folder: Path, **changes: Any) -> str:
    """The message where the folder has other tensors; None removes one."""
    path = folder / "model.safetensors"
    whole = safetensors.load_file(path)
    safetensors.save_file({n: t for n, t in {**whole, **changes}.items() if t is not None}, path)
    with pytest.raises(BadFile) as caught, open_checkpoint(folder) as checkpoint:
        arrays(checkpoint)
    safetensors.save_file(whole, path)
    return str(caught.value)


def test_parts_that_do_not_fit(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(model, "fused", tmp_path / "fused", monkeypatch)
    write(model, "one by one", tmp_path / "single", monkeypatch)
    name = EXPERTS.format(1)
    fused, single = tmp_path / "fused", tmp_path / "single"
    assert "needs gate_up_proj_scale, a float for each of 4 x 64 outputs, found none" in refused(
        fused, **{f"{name}.gate_up_proj_scale": None}
    )
    assert "need down_proj (F8_E4M3 of three axes), found none" in refused(
        fused, **{f"{name}.down_proj": None}
    )
    wrong = torch.ones(4, 64, 2)
    assert "found F32 of shape (4, 64, 2)" in refused(fused, **{f"{name}.down_proj_scale": wrong})
    nan = torch.full((4, 32, 64), 127, dtype=torch.uint8).view(torch.float8_e4m3fn)
    assert "not a number (NaN)" in refused(fused, **{f"{name}.down_proj": nan})
    assert "lacks expert 2 of 4" in refused(
        single, **{f"{name}.2.up_proj.weight": None, f"{name}.2.up_proj.weight_scale": None}
    )
    assert "needs weight_scale" in refused(single, **{f"{name}.2.up_proj.weight_scale": None})
    odd = {
        f"{name}.2.up_proj.weight": torch.ones(32, 96).to(torch.float8_e4m3fn),
        f"{name}.2.up_proj.weight_scale": torch.ones(32, 1),
    }
    assert "experts must be alike" in refused(single, **odd)


def as_meta_does(folder: Path, n_files: int, experts: bool) -> Parts:
    """Quantize Meta's files as its scripts do -> what they then stand for, by our names.

    llama4/scripts/quantize.py and llama3's: rows of outputs, codes laid back as they were, scales apart.
    """
    found: dict[str, list[Any]] = {}
    for file in range(n_files):
        stored = torch.load(folder / f"consolidated.{file:02d}.pth", weights_only=True)
        scales: Parts = {}
        if experts:
            for key, part, axis in (("w1", "in_eD_F", 1), ("w3", "swiglu_eD_F", 1), ("w2", "out_eF_D", 2)):
                name = f"layers.1.feed_forward.experts.moe_w_{part}"
                w_EOI = stored[name].reshape(4, -1, stored[name].shape[1]).transpose(1, 2).contiguous()
                codes, scale = per_row(w_EOI)
                laid_back = codes.transpose(1, 2).reshape(-1, stored[name].shape[1]).contiguous()
                stored[name] = torch.nn.Parameter(laid_back, requires_grad=False)
                scales[f"layers.1.feed_forward.experts.{key}"] = scale
                found.setdefault(f"layers.1.experts_{key}", []).append(
                    (axis, codes.float() * scale[..., None])
                )
        else:
            for key, axis in (("w1", 0), ("w2", 1), ("w3", 0)):
                codes, scale = per_row(stored[f"layers.1.feed_forward.{key}.weight"])
                stored[f"layers.1.feed_forward.{key}.weight"] = codes
                scales[f"1_feed_forward.{key}_{file}"] = scale
                found.setdefault(f"layers.1.{key}", []).append((axis, codes.float() * scale[:, None]))
        torch.save(stored, folder / f"consolidated.{file:02d}.pth")
        torch.save(scales, folder / f"fp8_scales_{file}.pt")
    return {name: torch.cat([t for _, t in parts], parts[0][0]) for name, parts in found.items()}


@pytest.mark.parametrize("n_files", [1, 2])
@pytest.mark.parametrize("experts", [True, False])
def test_metas_own_files(experts: bool, n_files: int, model: Any, tmp_path: Path) -> None:
    """Experts of Llama 4, and feed-forward matrices of Llama 3.1 405B, in every number of files."""
    source = tmp_path / "hf"
    if experts:
        model.save_pretrained(source)
    else:
        write_hf(TINY["llama2"], source)
    folder = tmp_path / "meta"
    with open_checkpoint(source) as checkpoint:
        plain = arrays(checkpoint)
        convert(plan(checkpoint, "meta", NO_TEXTS, n_files=n_files), folder)
    expected = as_meta_does(folder, n_files, experts)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.quantization == "Meta's fp8"
        found = arrays(checkpoint)
        for name, array in plain.items():
            wanted = expected[name].numpy() if name in expected else array
            np.testing.assert_array_equal(found[name], wanted, err_msg=name)
    scales = folder / f"fp8_scales_{n_files - 1}.pt"
    stored = torch.load(scales, weights_only=True)
    torch.save({name: t for name, t in stored.items() if "w2" not in name}, scales)
    with pytest.raises(BadFile, match=r"holds 8-bit floats, whose scales '.*w2.*' are not in fp8_scales_"):
        open_checkpoint(folder)
    torch.save({name: t[..., :1].contiguous() for name, t in stored.items()}, scales)
    with pytest.raises(BadFile, match="do not fit"):
        open_checkpoint(folder)
    scales.unlink()
    with pytest.raises(BadFile, match=r"fp8_scales_\d.pt is missing"):
        open_checkpoint(folder)
    scales.with_name(scales.name.replace("fp8", "int4")).touch()
    with pytest.raises(Unsupported, match="int4 experts of Llama 4 are not read"):
        open_checkpoint(folder)
