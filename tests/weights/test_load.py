"""Checkpoints from files: what is needed, what is refused, split models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as GgmlType

from puna.core import BadFile, NotPulled, Unsupported
from puna.model.config import ModelConfig
from puna.weights import store
from puna.weights.blocks.formats import GGUF_FORMATS
from puna.weights.blocks.quant import dequantize, random_blocks
from puna.weights.blocks.tensor import RawTensor
from puna.weights.files.gguf import GgufFile, write_gguf
from puna.weights.files.split import open_parts
from puna.weights.files.values import Value, ValueType
from puna.weights.load import open_checkpoint, write_checkpoint
from puna.weights.synthetic import synthetic_checkpoint

CONFIG = ModelConfig(
    dim=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    ffn_dim=96,
    vocab_size=40,
    norm_eps=2**-17,
    rope_theta=10000.0,
    context_length=256,
    tied=True,
)
Tensors = dict[str, RawTensor]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(synthetic_checkpoint(CONFIG, "q8_0"), tmp_path / "model.gguf")
    return tmp_path / "model.gguf"


def rewrite(
    path: Path, change: Callable[[Tensors], object], metadata: Mapping[str, Value] | None = None
) -> Path:
    """The same file with its tensors changed, and metadata added."""
    with GgufFile.open(path) as file:
        tensors = {t.name: t for t in file.raw_tensors()}
        change(tensors)
        write_gguf(
            path.with_name("changed.gguf"), {**file.metadata.encoded, **(metadata or {})}, [*tensors.values()]
        )
    return path.with_name("changed.gguf")


def some_tensor(name: str, shape: tuple[int, ...], kind: str = "F32") -> RawTensor:
    data = random_blocks(kind, shape, np.random.default_rng(0))
    return RawTensor(name, kind, shape, lambda: data)


def refused(path: Path, kind: type[BadFile] = BadFile) -> str:
    with pytest.raises(BadFile) as caught:
        open_checkpoint(path)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_open(model: Path) -> None:
    with open_checkpoint(model) as checkpoint:
        assert checkpoint.config == CONFIG
        assert checkpoint.paths == (model,)
        assert checkpoint.metadata["general.architecture"] == "llama"
        wv = checkpoint.tensors["layers.1.wv"]
        assert (wv.name, wv.kind, wv.shape, wv.n_bytes) == ("layers.1.wv", "Q8_0", (32, 64), 32 * 2 * 34)
        stored = GgufFile.open(model).data("blk.1.attn_v.weight")
        assert wv.data().tobytes() == stored.tobytes()
        wv.release()
        assert checkpoint.n_bytes == sum(t.n_bytes for t in checkpoint.tensors.values())


def test_another_architecture(model: Path) -> None:
    path = rewrite(model, lambda _: None, {"general.architecture": Value.of(ValueType.STRING, "qwen2")})
    assert "architecture 'qwen2'" in refused(path, Unsupported)


def test_missing_tensors(model: Path) -> None:
    for name, ours in {
        "token_embd.weight": "token_embd.weight",
        "blk.0.attn_q.weight": "layers.0.wq",
        "blk.1.ffn_norm.weight": "layers.1.ffn_norm",
        "output_norm.weight": "norm",
    }.items():
        path = rewrite(model, lambda tensors, name=name: tensors.pop(name))
        assert repr(ours) in refused(path)


def test_unknown_tensors(model: Path) -> None:
    for name in ("blk.0.attn_q.bias", "blk.0.ffn_gate_inp.bias", "v.patch_embd.weight"):
        path = rewrite(model, lambda tensors, name=name: tensors.update({name: some_tensor(name, (64,))}))
        assert repr(name) in refused(path, Unsupported)
    name = "blk.2.attn_q.weight"
    path = rewrite(model, lambda tensors: tensors.update({name: some_tensor(name, (64, 64))}))
    assert "'layers.2.wq'" in refused(path)
    name = "blk.0.ffn_gate_inp.weight"  # of a mixture of experts, which this model is not
    path = rewrite(model, lambda tensors: tensors.update({name: some_tensor(name, (64, 64))}))
    assert "'layers.0.router'" in refused(path)


def test_wrong_shapes(model: Path) -> None:
    for name, shape in {
        "blk.0.attn_k.weight": (64, 64),
        "output_norm.weight": (65,),
        "blk.1.ffn_up.weight": (),
    }.items():
        path = rewrite(model, lambda t, name=name, shape=shape: t.update({name: some_tensor(name, shape)}))
        assert f"found {shape}" in refused(path)


def test_stored_rotary_tables_are_left_out(model: Path) -> None:
    name = "blk.0.attn_rot_embd.weight"
    path = rewrite(model, lambda tensors: tensors.update({name: some_tensor(name, (8,))}))
    assert len(open_checkpoint(path).tensors) == len(open_checkpoint(model).tensors)


@pytest.mark.parametrize("kind", GGUF_FORMATS)
def test_every_kind_of_matrix(kind: str, tmp_path: Path) -> None:
    """Through our writer and reader, and the gguf package's reader and decoder."""
    config = replace(CONFIG, dim=256, n_heads=16, n_kv_heads=8, ffn_dim=256)
    checkpoint = synthetic_checkpoint(config, "f32")
    tensors = {
        name: t if len(t.shape) == 1 else some_tensor(name, t.shape, kind)
        for name, t in checkpoint.tensors.items()
    }
    write_checkpoint(replace(checkpoint, tensors=tensors), tmp_path / "m.gguf")
    peer = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}["blk.1.attn_v.weight"]
    with open_checkpoint(tmp_path / "m.gguf") as opened:
        wv = opened.tensors["layers.1.wv"]
        ours = dequantize(wv.data(), wv.kind, wv.shape)
    np.testing.assert_array_equal(ours, gguf.quants.dequantize(peer.data, GgmlType[kind]))


# Split models


def split(model: Path, n_parts: int, stem: str = "part") -> list[Path]:
    """As gguf-split does: metadata in the first part, split.* in all."""
    paths = []
    with GgufFile.open(model) as file:
        tensors = list(file.raw_tensors())
        for i in range(n_parts):
            part = {
                "split.no": Value.of(ValueType.UINT16, i),
                "split.count": Value.of(ValueType.UINT16, n_parts),
                "split.tensors.count": Value.of(ValueType.INT32, len(tensors)),
            }
            paths.append(model.with_name(f"{stem}-{i + 1:05}-of-{n_parts:05}.gguf"))
            mine = tensors[i * len(tensors) // n_parts : (i + 1) * len(tensors) // n_parts]
            write_gguf(paths[-1], {**(file.metadata.encoded if i == 0 else {}), **part}, mine)
    return paths


@pytest.mark.parametrize("n_parts", [1, 2, 5])
def test_split(model: Path, n_parts: int) -> None:
    paths = split(model, n_parts)
    whole = open_checkpoint(model)
    for any_part in paths:
        with open_checkpoint(any_part) as checkpoint:
            assert checkpoint.config == CONFIG
            assert checkpoint.paths == tuple(paths)
            assert list(checkpoint.tensors) == list(whole.tensors)
            for name, tensor in checkpoint.tensors.items():
                assert tensor.data().tobytes() == whole.tensors[name].data().tobytes()
            write_checkpoint(checkpoint, model.with_name("joined.gguf"))
            assert model.with_name("joined.gguf").read_bytes() == model.read_bytes()


def test_split_by_the_gguf_package(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    for i in range(5):
        writer.add_tensor(f"t{i}", np.full((3, 4), i, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = open_parts(tmp_path / "m-00002-of-00003.gguf")
    assert [list(part.tensors) for part in parts] == [["t0", "t1"], ["t2", "t3"], ["t4"]]


def test_parts_that_are_missing(model: Path) -> None:
    paths = split(model, 7)
    paths[2].unlink()
    assert "part-00003-of-00007.gguf cannot be found beside this one" in refused(paths[0])
    for path in paths[3:6]:
        path.unlink()
    message = refused(paths[6])
    assert "into 7 files, and part-00003-of-00007.gguf, part-00004-of-00007.gguf" in message
    assert "and 1 more cannot be found" in message


def test_parts_with_other_names(model: Path) -> None:
    first, second = split(model, 2)
    renamed = first.rename(model.with_name("model-a.gguf"))
    assert "named like NAME-00001-of-00002.gguf; give the parts their names back" in refused(renamed)
    renamed.rename(first)
    third = second.rename(model.with_name("part-00002-of-00003.gguf"))
    assert "named like NAME-00001-of-00002.gguf" in refused(third)


def test_parts_of_different_models(model: Path) -> None:
    first, second = split(model, 2)
    other = synthetic_checkpoint(replace(CONFIG, n_layers=3), "q8_0")
    write_checkpoint(other, model)
    _, other_second = split(model, 2, "other")
    content = second.read_bytes()
    other_second.replace(second)
    assert "tensors in all parts together, found" in refused(first)
    second.write_bytes(first.read_bytes())
    with pytest.raises(
        BadFile, match=r"expected split\.no and split\.count of 1 and 2 by its name, found 0 and 2"
    ):
        open_checkpoint(first)
    second.write_bytes(content[:-100])
    with pytest.raises(BadFile, match=rf"{second}: tensor .* truncated"):
        open_checkpoint(first)


def test_a_tensor_in_two_parts(model: Path) -> None:
    first, second = split(model, 2)
    with GgufFile.open(second) as file:
        tensors = list(file.raw_tensors())
        clash = replace(tensors[-1], name="token_embd.weight")
        write_gguf(second.with_name("new"), file.metadata.encoded, [*tensors[:-1], clash])
    second.with_name("new").replace(second)
    with pytest.raises(BadFile, match=r"'token_embd\.weight' is also in part-00001-of-00002\.gguf"):
        open_checkpoint(first)


def test_split_counts_of_a_wrong_type(model: Path) -> None:
    path = rewrite(model, lambda _: None, {"split.count": Value.of(ValueType.STRING, "2")})
    assert "split.count must be a whole number" in refused(path)
    path = rewrite(model, lambda _: None, {"split.count": Value.of(ValueType.UINT64, 2**64 - 1)})
    assert "split into 18,446,744,073,709,551,615 files" in refused(path)


# The default model, where it was pulled


@pytest.fixture
def smollm2() -> Path:
    try:
        return store.resolve("smollm2")
    except NotPulled:
        pytest.skip("smollm2 was not pulled")


def test_smollm2_comes_back_byte_for_byte(smollm2: Path, tmp_path: Path) -> None:
    with GgufFile.open(smollm2) as file:
        write_gguf(tmp_path / "m.gguf", file.metadata.encoded, list(file.raw_tensors()), file.version)
    assert (tmp_path / "m.gguf").read_bytes() == smollm2.read_bytes()


def test_smollm2_against_the_gguf_package(smollm2: Path) -> None:
    peer = gguf.GGUFReader(smollm2)
    with open_checkpoint(smollm2) as checkpoint:
        for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type"):
            assert checkpoint.metadata[key] == peer.fields[key].contents()
        for name, index in {"tok_embeddings": 0, "layers.0.w2": 2, "layers.0.attention_norm": 1}.items():
            tensor, theirs = checkpoint.tensors[name], peer.tensors[index]
            ours = dequantize(tensor.data(), tensor.kind, tensor.shape)
            np.testing.assert_array_equal(ours, gguf.quants.dequantize(theirs.data, theirs.tensor_type))
