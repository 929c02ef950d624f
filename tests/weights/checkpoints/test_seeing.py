"""Checkpoints of Llama 4 and Llama 3.2 Vision: to every format and back, against transformers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from weights import seeing
from weights.test_convert import convert_to, safetensors_of

from puna.core import BadFile, BadInput, Unsupported
from puna.model.names import check_shapes
from puna.weights.blocks.tensor import RawTensor
from puna.weights.checkpoints import foreign, meta
from puna.weights.checkpoints.meta_parts import joined, share
from puna.weights.files.gguf import GgufFile, write_gguf
from puna.weights.files.layout import write_file
from puna.weights.files.pth import PthFile
from puna.weights.files.safetensors import SafetensorsFile, layout
from puna.weights.files.values import Value, ValueType
from puna.weights.load import open_checkpoint

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
Saved = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    made: dict[tuple[str, str], Path] = {}

    def save(kind: str, dtype: str = "BF16") -> Path:
        if (kind, dtype) not in made:
            folder = tmp_path_factory.mktemp("hf") / "model"
            made[kind, dtype] = seeing.save(kind, folder, DTYPES[dtype])
        return made[kind, dtype]

    return save


@pytest.fixture
def checkpoint_code(monkeypatch: pytest.MonkeyPatch) -> Any:
    """llama-models' checkpoint.py, which needs fairscale for two numbers that these tests give themselves."""
    pytest.importorskip("llama_models")
    name = ""
    for part in ("fairscale", "nn", "model_parallel", "initialize"):
        name = f"{name}.{part}".lstrip(".")
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for number in ("get_model_parallel_rank", "get_model_parallel_world_size"):
        setattr(sys.modules[name], number, lambda: 1)
    monkeypatch.delitem(sys.modules, "llama_models.checkpoint", raising=False)
    return import_module("llama_models.checkpoint")


def assert_same_folder(a: Path, b: Path) -> None:
    theirs, ours = safetensors_of(a), safetensors_of(b)
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert ours[name] == tensor, name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", seeing.KINDS)
def test_hf_to_gguf_and_back(kind: str, dtype: str, saved: Saved, tmp_path: Path) -> None:
    source = saved(kind, dtype)
    written = convert_to(source, tmp_path / "m.gguf", "gguf")
    sees = not kind.endswith("text")
    assert written.files == (("m.gguf", "mmproj-m.gguf") if sees else ("m.gguf",))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(written.files)
    convert_to(tmp_path / "m.gguf", tmp_path / "back", "hf")
    assert_same_folder(source, tmp_path / "back")


@pytest.mark.parametrize("kind", ["llama4", "llama4 text"])
def test_hf_to_meta_and_back(kind: str, saved: Saved, tmp_path: Path) -> None:
    source = saved(kind, "BF16")
    convert_to(source, tmp_path / "meta", "meta", n_files=2)
    convert_to(tmp_path / "meta", tmp_path / "back", "hf")
    assert_same_folder(source, tmp_path / "back")
    convert_to(tmp_path / "back", tmp_path / "meta2", "meta", n_files=2)
    names = sorted(p.name for p in (tmp_path / "meta").iterdir())
    assert names == ["consolidated.00.pth", "consolidated.01.pth", "params.json"]
    for name in names:
        assert (tmp_path / "meta" / name).read_bytes() == (tmp_path / "meta2" / name).read_bytes()


@pytest.mark.parametrize("kind", seeing.KINDS)
def test_transformers_reads_what_comes_back(kind: str, saved: Saved, tmp_path: Path) -> None:
    """Its config.json is ours by then: no key of the original is left."""
    source = saved(kind, "BF16")
    convert_to(source, tmp_path / "m.gguf", "gguf")
    convert_to(tmp_path / "m.gguf", tmp_path / "back", "hf")
    before, after = seeing.load(source), seeing.load(tmp_path / "back")
    assert type(before) is type(after)
    assert torch.equal(seeing.logits(before, kind), seeing.logits(after, kind))
    if kind == "llama4":
        assert torch.equal(seeing.pictures(before), seeing.pictures(after))


@pytest.mark.parametrize("n_files", [1, 2])
def test_metas_code_puts_its_shards_together(
    n_files: int, checkpoint_code: Any, saved: Saved, tmp_path: Path
) -> None:
    """llama-models (checkpoint.py, reshard_mp) makes one file of several as ours is in one."""
    convert_to(saved("llama4", "F32"), tmp_path / "one", "meta")
    convert_to(saved("llama4", "F32"), tmp_path / "cut", "meta", n_files=n_files)
    parts = [
        torch.load(tmp_path / "cut" / f"consolidated.{i:02d}.pth", weights_only=True) for i in range(n_files)
    ]
    whole = torch.load(tmp_path / "one" / "consolidated.00.pth", weights_only=True)
    if n_files > 1:
        parts = [checkpoint_code.convert_moe_weights(part, 4) for part in parts]
        merged = checkpoint_code.reshard_mp(parts, size=1, rank=0)
    else:
        (merged,) = parts
    assert merged.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(merged[name].reshape(tensor.shape), tensor), name


def test_shards_that_metas_code_cuts(checkpoint_code: Any, saved: Saved, tmp_path: Path) -> None:
    """Two files cut by llama-models (reshard_mp of a whole one) are the checkpoint that they were cut of."""
    convert_to(saved("llama4", "BF16"), tmp_path / "one", "meta")
    whole = torch.load(tmp_path / "one" / "consolidated.00.pth", weights_only=True)
    by_expert = checkpoint_code.convert_moe_weights(dict(whole), 4)
    (tmp_path / "cut").mkdir()
    for rank in range(2):
        part = checkpoint_code.reshard_mp([by_expert], size=2, rank=rank)
        part = {name: t.flatten(0, 1) if ".moe_w_" in name else t for name, t in part.items()}
        torch.save(part, tmp_path / "cut" / f"consolidated.{rank:02d}.pth")
    (tmp_path / "cut" / "params.json").write_bytes((tmp_path / "one" / "params.json").read_bytes())
    convert_to(tmp_path / "cut", tmp_path / "back", "hf")
    assert_same_folder(saved("llama4", "BF16"), tmp_path / "back")


def test_metas_layout_of_llama_32_vision(saved: Saved, tmp_path: Path) -> None:
    """params.json has no sizes of the encoder, so a tiny one goes through the files alone."""
    with open_checkpoint(saved("mllama", "F32")) as checkpoint:
        config = checkpoint.config
        ours = {name: _agreed(tensor, config) for name, tensor in checkpoint.tensors.items()}
        stored = foreign.to_foreign("meta", config, ours)
        for one in meta.shard_layouts(config, stored, 2):
            write_file(tmp_path, one)
        files = [PthFile.open(tmp_path / f"consolidated.{i:02d}.pth") for i in range(2)]
        shards = zip(*(file.raw_tensors() for file in files), strict=True)
        whole = {parts[0].name: joined(parts, share(parts[0].name, config, 0)) for parts in shards}
        back = foreign.to_ours("meta", config, whole)
        check_shapes(config, {name: tensor.shape for name, tensor in back.items()})
        for name, tensor in ours.items():
            np.testing.assert_array_equal(back[name].data(), tensor.data(), err_msg=name)
        with pytest.raises(Unsupported, match="cannot state this model's vision"):
            convert_to(saved("mllama", "F32"), tmp_path / "meta", "meta")


def _agreed(tensor: RawTensor, config: Any) -> RawTensor:
    """Tables of tiles with zeros: Meta's cannot hold values that differ between grids."""
    if tensor.name.endswith(("gated_positional_embedding", "tile_pos_embed")):
        return RawTensor(tensor.name, tensor.kind, tensor.shape, lambda: np.zeros(tensor.n_bytes, np.uint8))
    return tensor


def test_a_text_file_alone_is_a_text_model(saved: Saved, tmp_path: Path) -> None:
    convert_to(saved("llama4", "BF16"), tmp_path / "m.gguf", "gguf")
    with open_checkpoint(tmp_path) as both:
        assert both.config.vision is not None
        assert [path.name for path in both.paths] == ["m.gguf", "mmproj-m.gguf"]
    vision = (tmp_path / "mmproj-m.gguf").rename(tmp_path / "elsewhere.gguf")
    with open_checkpoint(tmp_path / "m.gguf") as text:
        assert text.config.vision is None
        assert not any(name.startswith("vision") for name in text.tensors)
    with open_checkpoint(tmp_path / "m.gguf", vision) as given:
        assert given.config == both.config


def test_vision_files_of_other_models(saved: Saved, tmp_path: Path) -> None:
    for name, kind in (("a", "llama4"), ("b", "mllama")):
        convert_to(saved(kind, "BF16"), tmp_path / f"{name}.gguf", "gguf", name=name)
    with pytest.raises(BadFile, match=r"vision file of a mllama, and the text file is a llama4"):
        open_checkpoint(tmp_path / "a.gguf", tmp_path / "mmproj-b.gguf")
    with pytest.raises(BadInput, match="is of architecture 'clip', this one's is 'llama4'"):
        open_checkpoint(tmp_path / "a.gguf", tmp_path / "a.gguf")
    with GgufFile.open(tmp_path / "mmproj-a.gguf") as file:
        entries = dict(file.metadata.encoded)
        for key, value, message in (
            ("clip.vision.projection_dim", Value.of(ValueType.UINT32, 65), "for a model of width 65"),
            ("clip.projector_type", Value.of(ValueType.STRING, "gemma3"), "projector type is 'gemma3'"),
        ):
            write_gguf(tmp_path / "other.gguf", entries | {key: value}, list(file.raw_tensors()))
            with pytest.raises(BadInput, match=message):
                open_checkpoint(tmp_path / "a.gguf", tmp_path / "other.gguf")
        short = list(file.raw_tensors())[1:]
        write_gguf(tmp_path / "other.gguf", entries, short)
    with pytest.raises(BadFile, match="lacks the tensor 'vision"):
        open_checkpoint(tmp_path / "a.gguf", tmp_path / "other.gguf")


def test_one_of_many_vision_files_must_be_named(saved: Saved, tmp_path: Path) -> None:
    convert_to(saved("llama4", "BF16"), tmp_path / "m.gguf", "gguf")
    (tmp_path / "mmproj-m.gguf").rename(tmp_path / "x-mmproj.gguf")
    (tmp_path / "y-mmproj.gguf").write_bytes(b"")
    with pytest.raises(BadInput, match=r"holds 2 vision files .* name the one of this model with --mmproj"):
        open_checkpoint(tmp_path / "m.gguf")


def _resaved(source: Path, folder: Path, change: Callable[[RawTensor], RawTensor | None]) -> Path:
    """The folder again with some tensors changed, or left out."""
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    from puna.weights.files.layout import Slice

    with SafetensorsFile.open(source / "model.safetensors") as file:
        kept = [new for new in map(change, file.raw_tensors()) if new is not None]
        write_file(folder, layout("model.safetensors", [Slice(t.name, t) for t in kept]))
    return folder


def test_damaged_folders(saved: Saved, tmp_path: Path) -> None:
    from dataclasses import replace

    source = saved("llama4", "BF16")
    experts = "language_model.model.layers.1.feed_forward.experts.gate_up_proj"

    def flat(tensor: RawTensor) -> RawTensor:
        return replace(tensor, shape=(4, 4096)) if tensor.name == experts else tensor

    def narrow(tensor: RawTensor) -> RawTensor:
        return replace(tensor, shape=(2, 64, 128)) if tensor.name == experts else tensor

    def without(tensor: RawTensor) -> RawTensor | None:
        return None if tensor.name == experts else tensor

    def with_nan(tensor: RawTensor) -> RawTensor:
        if tensor.name != experts:
            return tensor
        return replace(tensor, data=lambda: np.full(tensor.n_bytes, 0xFF, np.uint8))

    for i, (change, message) in enumerate(
        (
            (flat, "cannot hold 'layers.1.experts_w1', 'layers.1.experts_w3'"),
            (narrow, "cannot hold 'layers.1.experts_w1'"),
            (without, "lacks the tensor 'layers.1.experts_w1'"),
        )
    ):
        folder = _resaved(source, tmp_path / str(i), change)
        with pytest.raises(BadFile, match=message):
            open_checkpoint(folder)
    folder = _resaved(source, tmp_path / "nan", with_nan)
    with pytest.raises(BadFile, match="not a number"):
        convert_to(folder, tmp_path / "m.gguf", "gguf")
    assert not list(tmp_path.glob("*m.gguf*"))


def test_missing_shards_of_meta(saved: Saved, tmp_path: Path) -> None:
    convert_to(saved("llama4", "BF16"), tmp_path / "meta", "meta", n_files=2)
    (tmp_path / "meta" / "consolidated.01.pth").unlink()
    with pytest.raises(BadFile, match="was saved in 2 files, found 1"):
        open_checkpoint(tmp_path / "meta")


def test_states_of_other_software_are_passed_over(saved: Saved, tmp_path: Path) -> None:
    """What torch saves for Transformer Engine beside the tensors; llama-models' load hooks drop it."""
    convert_to(saved("llama4 text", "BF16"), tmp_path / "meta", "meta")
    path = tmp_path / "meta" / "consolidated.00.pth"
    stored = torch.load(path, weights_only=True)
    stored["layers.0.attention.wo._extra_state"] = torch.zeros(4, dtype=torch.uint8)
    stored["layers.1.attention.wo._extra_state"] = None
    stored["layers.1.feed_forward.running_gate_stats_3E"] = torch.zeros(3, 4)
    torch.save(stored, path)
    convert_to(tmp_path / "meta", tmp_path / "back", "hf")
    assert_same_folder(saved("llama4 text", "BF16"), tmp_path / "back")


def test_fused_tensors_of_two_kinds(saved: Saved, tmp_path: Path) -> None:
    from dataclasses import replace

    def wide(tensor: RawTensor) -> RawTensor:
        if not tensor.name.endswith("layers.0.self_attn.q_proj.weight"):
            return tensor
        return replace(tensor, kind="F32", data=lambda: np.zeros(2 * tensor.n_bytes, np.uint8))

    folder = _resaved(saved("llama4", "BF16"), tmp_path / "mixed", wide)
    with pytest.raises(Unsupported, match="theirs hold BF16 and F32; add --dtype"):
        convert_to(folder, tmp_path / "meta", "meta")
    convert_to(folder, tmp_path / "meta", "meta", dtype="BF16")


def test_one_tensor_is_read_at_a_time(saved: Saved) -> None:
    """Parts of a fused tensor are views of the file until they are copied: none is made by opening."""
    with open_checkpoint(saved("llama4", "BF16")) as checkpoint:
        w1 = checkpoint.tensors["layers.1.experts_w1"]
        assert w1.shape == (4, 32, 64)
        assert w1.data().size == w1.n_bytes == 2 * 4 * 32 * 64
