"""Safetensors: against the reference package, and damaged headers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from weights.damage import read_all

from puna.core import BadFile, Unsupported
from puna.weights.blocks.quant import random_blocks
from puna.weights.blocks.tensor import RawTensor
from puna.weights.files.layout import Slice, write_file
from puna.weights.files.safetensors import SafetensorsFile, layout, open_sharded, sharded_layouts

ARRAYS = {
    "b": np.arange(12, dtype=np.float16).reshape(3, 4),
    "a": np.arange(5, dtype=np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(2, np.float32),
}


def raw_tensor(name: str, kind: str, shape: tuple[int, ...]) -> RawTensor:
    data = random_blocks(kind, shape, np.random.default_rng(len(name)))
    return RawTensor(name, kind, shape, lambda: data)


TENSORS = [raw_tensor("x", "BF16", (3, 5)), raw_tensor("yy", "F32", (7,)), raw_tensor("zzz", "F16", (2, 2))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(ARRAYS, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path / "model.safetensors"


def test_reads_what_the_reference_writes(path: Path) -> None:
    with SafetensorsFile.open(path) as file:
        assert file.metadata == {"format": "pt"}
        tensors = {tensor.name: tensor for tensor in file.raw_tensors()}
        assert tensors.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            tensor = tensors[name]
            assert tensor.shape == array.shape
            np.testing.assert_array_equal(tensor.data().view(array.dtype), array.reshape(-1))
            tensor.release()
    with pytest.raises(ValueError, match="closed"):
        file.data("a")


def test_the_reference_reads_what_we_write(tmp_path: Path) -> None:
    tensors = [tensor for tensor in TENSORS if tensor.kind != "BF16"]  # numpy has no name for it
    found = load_file(write_file(tmp_path, layout("m.safetensors", [Slice(t.name, t) for t in tensors])))
    assert found.keys() == {tensor.name for tensor in tensors}
    for tensor in tensors:
        assert found[tensor.name].shape == tensor.shape
        np.testing.assert_array_equal(found[tensor.name].reshape(-1).view(np.uint8), tensor.data())


def test_round_trip_in_shards(tmp_path: Path) -> None:
    layouts, index = sharded_layouts([Slice(t.name, t) for t in TENSORS], shard_bytes=40)
    assert index is not None
    assert index["metadata"] == {"total_size": sum(t.n_bytes for t in TENSORS)}
    assert [one.file_name for one in layouts] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    for one in layouts:
        assert write_file(tmp_path, one).stat().st_size == one.size
    (tmp_path / "i.json").write_text(json.dumps(index))
    files = open_sharded(tmp_path / "i.json")
    found = {tensor.name: tensor for file in files for tensor in file.raw_tensors()}
    for tensor in TENSORS:
        assert (found[tensor.name].kind, found[tensor.name].shape) == (tensor.kind, tensor.shape)
        np.testing.assert_array_equal(found[tensor.name].data(), tensor.data())
    whole, none = sharded_layouts([Slice(t.name, t) for t in TENSORS], shard_bytes=1000)
    assert [one.file_name for one in whole] == ["model.safetensors"]
    assert none is None


def with_header(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + n])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + n :])
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["a"].update(data_offsets=[0, 1 << 40]), "must lie within the"),
        (lambda h: h["a"].update(data_offsets=[-4, 16]), "must lie within the"),
        (lambda h: h["a"].update(data_offsets=[True, 20]), "must lie within the"),
        (lambda h: h["a"].update(shape=[6]), "takes 24 bytes, the header gives it 20"),
        (lambda h: h["a"].update(shape=[1 << 61, 1 << 61]), "takes"),
        (lambda h: h["a"].update(shape=[-5]), "must be at most 8 counts"),
        (lambda h: h["a"].update(dtype="F33"), "has the dtype 'F33', known are"),
        (lambda h: h["a"].pop("shape"), "must have dtype, shape and data_offsets"),
        (lambda h: h.pop("a"), "should begin at byte"),
        (lambda h: h.update(c={**h["a"]}), "should begin at byte"),
        (lambda h: h.update(__metadata__={"a": 1}), "must map strings to strings"),
        (lambda h: h.update(a=[]), "must have dtype"),
    ],
)
def test_damaged_headers(path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(BadFile, match=message) as caught:
        SafetensorsFile.open(with_header(path, change))
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "at least 10 bytes"),
        (b"\xff" * 8 + b"{}", "should have at most 2 bytes"),
        ((2).to_bytes(8, "little") + b"[]", "must be a JSON object"),
        ((4).to_bytes(8, "little") + b"{,,}", "must be JSON"),
        ((18).to_bytes(8, "little") + b'{"a": 1,   "a": 2}', "names 'a' twice"),
        ((100_000).to_bytes(8, "little") + b"[" * 100_000, "must be JSON"),
        ((2).to_bytes(8, "little") + b"{}xx", "should end at byte 10, the file ends at 12"),
    ],
)
def test_what_is_no_such_file(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    with pytest.raises(BadFile, match=message):
        SafetensorsFile.open(path)


def test_quantized_tensors_are_named(tmp_path: Path) -> None:
    entry = {"dtype": "F8_E4M3", "shape": [2, 3], "data_offsets": [0, 6]}
    text = json.dumps({"w": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(6))
    with SafetensorsFile.open(path) as file:
        assert file.tensors["w"].dtype == "F8_E4M3"
        with pytest.raises(Unsupported, match="'w' holds F8_E4M3, and Puna reads F32, F16, BF16"):
            list(file.raw_tensors())


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../m.safetensors"}}, "is no file beside it"),
        ({"weight_map": {"a": "m.safetensors"}}, "names 1 files, and m.safetensors cannot be found"),
        ({"weight_map": {"a": 1}}, "must have a weight_map"),
        ({}, "must have a weight_map"),
        ({"weight_map": {"nothing": "model.safetensors"}}, "places tensor"),
    ],
)
def test_bad_index(path: Path, index: dict[str, Any], message: str) -> None:
    (path.parent / "i.json").write_text(json.dumps(index))
    with pytest.raises(BadFile, match=message):
        open_sharded(path.parent / "i.json")


NAME = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | NAME,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAME, inner, max_size=3),
    max_leaves=4,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F4", "I8", "x"]) | JSON,
        "shape": st.lists(st.integers(-1, 1 << 70), max_size=4) | JSON,
        "data_offsets": st.lists(st.integers(-1, 100), min_size=2, max_size=2) | JSON,
    }
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(header=st.dictionaries(NAME, ENTRY | JSON, max_size=4), data=st.binary(max_size=64))
def test_any_header_opens_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, header: Any, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    try:
        with SafetensorsFile.open(path) as file:
            assert sum(info.n_bytes for info in file.tensors.values()) == len(data)
    except BadFile:
        pass


def test_damaged_files_open_or_are_refused(path: Path) -> None:
    raw = path.read_bytes()
    statuses: Counter[str] = Counter()
    for case in range(800):
        rng = np.random.default_rng([0, case])
        damaged = bytearray(raw)
        for _ in range(int(rng.integers(1, 4))):
            damaged[int(rng.integers(len(raw)))] = int(rng.integers(256))
        if rng.random() < 0.2:
            del damaged[int(rng.integers(len(raw))) :]
        path.write_bytes(damaged)
        read_all(SafetensorsFile.open, path, statuses, 1 << 20, case)
    assert statuses["opened"] > 50
    assert statuses["refused"] > 200
