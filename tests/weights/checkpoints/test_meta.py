"""Meta's checkpoints: every way to share them out, what does not belong together, and the way back."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.checkpoints import FOLDER, LLAMA2, LLAMA3, tensors
from numpy.typing import NDArray

from puna.core import BadFile, BadValue, Unsupported
from puna.model import catalog
from puna.model.config import ModelConfig
from puna.model.incoming import is_llama4
from puna.weights.blocks.quant import dequantize, quantize
from puna.weights.blocks.tensor import RawTensor
from puna.weights.checkpoints import meta
from puna.weights.checkpoints.foreign import to_foreign
from puna.weights.describe.config import meta_params
from puna.weights.files.layout import Layout, Slice, write_file
from puna.weights.files.pth import layout
from puna.weights.load import Checkpoint, open_checkpoint


def values(checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    return {n: dequantize(t.data(), t.kind, t.shape) for n, t in checkpoint.tensors.items()}


def shard_layouts(config: ModelConfig, whole: list[RawTensor], n_files: int) -> list[Layout]:
    """As conversion lays them out, from our tensors."""
    stored = to_foreign("meta", config, {tensor.name: tensor for tensor in whole})
    return meta.shard_layouts(config, stored, n_files)


def raw_tensors(config: ModelConfig) -> list[RawTensor]:
    return [
        RawTensor(name, "F32", array.shape, lambda array=array: quantize(array, "F32"))
        for name, array in tensors(config).items()
    ]


@pytest.mark.parametrize(
    ("name", "config", "kind"),
    [("llama2", LLAMA2, "F16"), ("llama3", LLAMA3, "BF16"), ("one", LLAMA3, "F32")],
)
@pytest.mark.parametrize("file", ["", "params.json", "consolidated.00.pth"])
def test_reads_what_torch_saved(name: str, config: ModelConfig, kind: str, file: str) -> None:
    with open_checkpoint(FOLDER / name / file) as checkpoint:
        assert checkpoint.config == config
        assert checkpoint.folder == FOLDER / name
        assert {tensor.kind for tensor in checkpoint.tensors.values()} == {kind}
        found, expected = values(checkpoint), tensors(config)
        assert found.keys() == expected.keys()
        for key, array in expected.items():
            np.testing.assert_array_equal(found[key], array, err_msg=key)
            checkpoint.tensors[key].release()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER / "llama2", tmp_path / "llama2"))


def refused(folder: Path) -> str:
    with pytest.raises(BadFile) as caught:
        open_checkpoint(folder)
    assert str(caught.value).startswith(str(folder))
    return str(caught.value)


def test_missing_files(folder: Path) -> None:
    (folder / "consolidated.00.pth").rename(folder / "x")
    assert "consolidated.00.pth is missing (1 others are there)" in refused(folder)
    (folder / "x").rename(folder / "consolidated.00.pth")
    (folder / "consolidated.01.pth").unlink()
    assert "was saved in 2 files, found 1" in refused(folder)
    (folder / "params.json").unlink()
    assert "no params.json" in refused(folder)


def test_too_many_files(folder: Path) -> None:
    shutil.copy(folder / "consolidated.00.pth", folder / "consolidated.02.pth")
    assert "was saved in 2 files, found 3" in refused(folder)


def test_files_of_two_checkpoints(folder: Path) -> None:
    shutil.copy(FOLDER / "llama3" / "consolidated.01.pth", folder)
    assert "must hold parts of the same tensors" in refused(folder)


def test_norms_must_be_equal_in_all_files(folder: Path) -> None:
    cut = shard_layouts(LLAMA3, raw_tensors(LLAMA3), 2)
    other = [
        replace(t, data=lambda t=t: t.data() ^ 1) if t.name == "norm" else t for t in raw_tensors(LLAMA3)
    ]
    for file in folder.iterdir():
        file.unlink()
    shutil.copy(FOLDER / "llama3" / "params.json", folder)
    write_file(folder, cut[0])
    write_file(folder, shard_layouts(LLAMA3, other, 2)[1])
    with open_checkpoint(folder) as checkpoint:
        checkpoint.tensors["layers.0.ffn_norm"].data()
        with pytest.raises(
            BadFile, match=r"'norm.weight' must be equal in all files, file 01 has other values"
        ):
            checkpoint.tensors["norm"].data()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 20}, "was saved in|must have the 20 columns|must be"),
        ({"vocab_size": 33}, "states a vocabulary of 33, and tok_embeddings has 32 rows"),
        ({"n_layers": 3}, "lacks the tensor 'layers.2.attention_norm'"),
        ({"multiple_of": 64}, r"'layers.0.w1' must have shape \(64, 16\)"),
        ({"moe": 1}, "sets 'moe', which Puna does not know"),
        ({"dim": "16"}, "must be a whole number"),
    ],
)
def test_params_that_do_not_fit(folder: Path, changes: dict[str, Any], message: str) -> None:
    params = json.loads((folder / "params.json").read_text()) | changes
    (folder / "params.json").write_text(json.dumps(params))
    with pytest.raises(BadFile, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize("config", [LLAMA2, LLAMA3])
@pytest.mark.parametrize("n_files", [1, 2])
def test_shards_come_together_again(config: ModelConfig, n_files: int, tmp_path: Path) -> None:
    for one in shard_layouts(config, raw_tensors(config), n_files):
        write_file(tmp_path, one)
    (tmp_path / "params.json").write_text(json.dumps(meta_params(config)))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.config == config
        for name, array in values(checkpoint).items():
            np.testing.assert_array_equal(array, tensors(config)[name])


@pytest.mark.parametrize(("name", "config"), [("llama2", LLAMA2), ("llama3", LLAMA3)])
def test_shards_are_those_of_metas_code(name: str, config: ModelConfig) -> None:
    """Part by part what make_checkpoints.py cut with torch, the axis of the embeddings included."""
    from puna.weights.files.pth import PthFile

    kind = "F16" if name == "llama2" else "BF16"
    whole = [RawTensor(n, kind, a.shape, lambda a=a: quantize(a, kind)) for n, a in tensors(config).items()]
    for one in shard_layouts(config, whole, 2):
        with PthFile.open(FOLDER / name / one.file_name) as file:
            cut = {tensor.name: tensor for tensor in file.raw_tensors()}
            for _, piece in one.pieces:
                assert cut[piece.name].shape == piece.shape
                np.testing.assert_array_equal(piece.of(piece.source.data()), cut[piece.name].data())


def test_heads_that_cannot_be_shared_out() -> None:
    with pytest.raises(BadValue, match=r"must divide 2 key/value heads, .* got 4"):
        meta.shard_layouts(LLAMA2, [], 4)


def test_repeated_heads(tmp_path: Path) -> None:
    """As in Llama 3.1 405B's files for 16 GPUs: 8 heads of keys and values, each twice."""
    arrays = tensors(LLAMA3)
    files: list[list[RawTensor]] = [[], [], [], []]
    for name, array in arrays.items():
        part = name.split(".")[-1]
        if part in ("wk", "wv"):
            array = np.repeat(array.reshape(2, 4, 16), 2, axis=0).reshape(16, 16)
        axis = {"wo": 1, "w2": 1}.get(part, 0)
        cut = [array] * 4 if array.ndim == 1 else np.split(array, 4, axis)
        for file, piece in zip(files, cut, strict=True):
            data = quantize(np.ascontiguousarray(piece), "F32")
            file.append(RawTensor(name, "F32", piece.shape, lambda data=data: data))
    shutil.copy(FOLDER / "llama3" / "params.json", tmp_path)
    from puna.model.names import to_meta

    for i, file in enumerate(files):
        write_file(tmp_path, layout(f"consolidated.{i:02d}.pth", [Slice(to_meta(t.name), t) for t in file]))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.config == LLAMA3
        for name, array in values(checkpoint).items():
            np.testing.assert_array_equal(array, arrays[name])


def test_tied_tables_are_found(tmp_path: Path) -> None:
    """Meta's files hold the table of a tied model twice."""
    table = raw_tensors(LLAMA3)[0]
    tied = [*raw_tensors(LLAMA3)[:-1], replace(table, name="output")]
    for one in shard_layouts(LLAMA3, tied, 2):
        write_file(tmp_path, one)
    shutil.copy(FOLDER / "llama3" / "params.json", tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.config == replace(LLAMA3, tied=True)


# The 4-bit releases of Llama 3.2 have the params.json of the others, and a shorter context.
RELEASES = [
    entry for entry in catalog.CATALOG if "qlora" not in entry.name and "spinquant" not in entry.name
]  # fmt: skip


@pytest.mark.parametrize("entry", RELEASES, ids=lambda entry: entry.name)
def test_every_release_is_stated_and_read_back(entry: catalog.CatalogEntry) -> None:
    """Llama 1 and 2 of one shape differ in norm_eps; what params.json leaves out comes from the catalog."""
    config = entry.config
    if config.head_dim * config.n_heads != config.dim:
        with pytest.raises(Unsupported, match="no width of heads of its own"):
            meta_params(config)
        return
    read = meta.read_params(meta_params(config), config.vocab_size)
    # params.json is the same for a base model of Llama 4 and its instruct release with a longer context
    context = config.context_length if is_llama4(config) else read.context_length
    assert replace(read, tied=config.tied, context_length=context) == config


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("llama-2-7b", {"multiple_of": 256}),
        ("llama-2-70b", {"multiple_of": 4096, "ffn_dim_multiplier": 1.3}),
        ("llama-3-8b", {"multiple_of": 1024, "ffn_dim_multiplier": 1.3}),
        ("llama-3.1-70b", {"multiple_of": 4096, "ffn_dim_multiplier": 1.3}),
        ("llama-3.1-405b", {"multiple_of": 4096, "ffn_dim_multiplier": 1.2}),
        ("llama-3.2-1b", {"multiple_of": 256, "ffn_dim_multiplier": 1.5}),
    ],
)
def test_the_rule_gives_the_width_of_the_release(name: str, rule: dict[str, Any]) -> None:
    """Meta's own settings (llama-models, sku_list.py), or others that come to the same width."""
    config = catalog.find(name).config
    written = {k: v for k, v in meta_params(config).items() if k in ("multiple_of", "ffn_dim_multiplier")}
    params = {k: v for k, v in meta_params(config).items() if k not in written}
    assert meta.read_params({**params, **rule}, config.vocab_size).ffn_dim == config.ffn_dim
    assert meta.read_params({**params, **written}, config.vocab_size).ffn_dim == config.ffn_dim
