"""torch's files: those that torch saved, those that it would have to refuse, and damaged ones."""

from __future__ import annotations

import pickle
import zipfile
from collections import Counter
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.checkpoints import FOLDER, LLAMA3, tensors
from hypothesis import given
from hypothesis import strategies as st
from weights.damage import read_all

from puna.core import BadFile, Unsupported
from puna.model.names import from_meta
from puna.weights.blocks.quant import dequantize, random_blocks
from puna.weights.blocks.tensor import RawTensor
from puna.weights.files.layout import Slice, write_file
from puna.weights.files.pickles import StorageRef, TensorRef, read_tensors, write_tensors
from puna.weights.files.pth import PthFile, layout

ONE = FOLDER / "one" / "consolidated.00.pth"
SHAPES = {"a": ("BF16", (3, 5)), "b": ("F32", (7,)), "c": ("F16", (2, 1, 2)), "d": ("F32", ())}


def raw_tensor(name: str, kind: str, shape: tuple[int, ...]) -> RawTensor:
    data = random_blocks(kind, shape, np.random.default_rng(1))
    return RawTensor(name, kind, shape, lambda: data)


TENSORS = [raw_tensor(name, kind, shape) for name, (kind, shape) in SHAPES.items()]


def test_reads_what_torch_writes() -> None:
    expected = tensors(LLAMA3)
    with PthFile.open(ONE) as file:
        found = {tensor.name: tensor for tensor in file.raw_tensors()}
        assert len(found) == len(expected) + 1  # rope.freqs
        for name, tensor in found.items():
            ours = from_meta(name)
            if ours is not None:
                values = dequantize(tensor.data(), tensor.kind, tensor.shape)
                np.testing.assert_array_equal(values, expected[ours])
                tensor.release()
    with pytest.raises(ValueError, match="closed"):
        file.data("norm.weight")


def test_round_trip(tmp_path: Path) -> None:
    out = layout("m.pth", [Slice(t.name, t) for t in TENSORS])
    path = write_file(tmp_path, out)
    assert path.stat().st_size == out.size
    assert all(offset % 64 == 0 for offset, _ in out.pieces)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None  # sums, sizes and places are those of any zip
    with PthFile.open(path) as file:
        for found, tensor in zip(file.raw_tensors(), TENSORS, strict=True):
            assert (found.name, found.kind, found.shape) == (tensor.name, tensor.kind, tensor.shape)
            np.testing.assert_array_equal(found.data(), tensor.data())


@pytest.mark.peers
def test_torch_reads_what_we_write(tmp_path: Path) -> None:
    import torch

    path = write_file(tmp_path, layout("m.pth", [Slice(t.name, t) for t in TENSORS]))
    for options in ({}, {"mmap": True}):
        found = torch.load(path, weights_only=True, **options)
        assert list(found) == [tensor.name for tensor in TENSORS]
        for tensor in TENSORS:
            assert tuple(found[tensor.name].shape) == tensor.shape
            raw = found[tensor.name].contiguous().reshape(-1).view(torch.uint8).numpy()
            np.testing.assert_array_equal(raw, tensor.data())


@pytest.mark.parametrize("axes", [(1, 0, 2), (2, 1, 0), (0, 2, 1), (2, 0, 1)])
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 3, 4), (3, 1, 1)])
def test_transposed_tensors_are_copied(axes: tuple[int, ...], shape: tuple[int, ...], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    whole = torch.arange(prod(shape), dtype=torch.float32).reshape(shape).permute(axes)
    torch.save({"w": whole, "q": whole.to(torch.int8)}, tmp_path / "m.pth")
    with PthFile.open(tmp_path / "m.pth") as file:
        found = {t.name: t for t in file.raw_tensors(("I8",))}
        assert found["w"].shape == found["q"].shape == tuple(whole.shape)
        np.testing.assert_array_equal(
            found["w"].data().view("<f4").reshape(whole.shape), whole.numpy().astype("<f4")
        )
        np.testing.assert_array_equal(found["q"].data().view(np.int8), whole.reshape(-1).numpy())


def test_kinds_that_only_quantized_releases_have(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    bytes_ = torch.arange(6, dtype=torch.uint8).reshape(2, 3)
    parameter = torch.nn.Parameter(bytes_.view(torch.float8_e4m3fn), requires_grad=False)
    signed = bytes_.to(torch.int8)[1:]
    torch.save({"f": parameter, "s": signed}, tmp_path / "m.pth")
    with PthFile.open(tmp_path / "m.pth") as file:
        found = {t.name: (t.kind, t.shape, t.data().tolist()) for t in file.raw_tensors(("I8", "F8_E4M3"))}
        assert found["f"] == ("F8_E4M3", (2, 3), [0, 1, 2, 3, 4, 5])
        assert found["s"] == ("I8", (1, 3), [3, 4, 5])
        with pytest.raises(Unsupported, match=r"'f' holds F8_E4M3, and params\.json does not say"):
            list(file.raw_tensors(("I8",)))
    torch.save({"u": bytes_.to(torch.uint16)}, tmp_path / "m.pth")
    with pytest.raises(Unsupported):
        PthFile.open(tmp_path / "m.pth")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code in a pickle was run",)


def archive_of(path: Path, raw: bytes, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("m/data.pkl", raw)
        for name, data in members.items():
            archive.writestr(f"m/{name}", data)
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_code_is_not_run(tmp_path: Path, protocol: int, capsys: pytest.CaptureFixture[str]) -> None:
    path = archive_of(tmp_path / "x.pth", pickle.dumps({"w": Evil()}, protocol))
    with pytest.raises(Unsupported, match=r"names \w+\.print|uses the opcode") as caught:
        PthFile.open(path)
    assert "may contain code and is not read" in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "holds a list, expected a dictionary of tensors"),
        ({"epoch": 3}, "holds 'epoch': int, expected tensors by name only"),
        ({"model": {}}, "holds 'model': dict"),
        (b"bytes", "opcode"),
    ],
)
def test_other_pickles(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        PthFile.open(archive_of(tmp_path / "x.pth", pickle.dumps(value, 4)))


def tensor_file(path: Path, ref: TensorRef, data: bytes = bytes(64), **members: bytes) -> Path:
    good = write_tensors({"w": TensorRef(StorageRef("0", "F32", 16), 0, (2,), (1,))})
    raw = write_tensors({"w": ref}) if ref.storage.kind == "F32" else good.replace(b"Float", b"Long")
    return archive_of(path, raw, **{"data/0": data, **members})


STORAGE = StorageRef("0", "F32", 16)


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        (
            TensorRef(STORAGE, 0, (2, 4), (8, 1)),
            r"should be contiguous, with strides \(4, 1\), found \(8, 1\)",
        ),
        (TensorRef(STORAGE, 1, (4, 4), (4, 1)), "needs 68 bytes of the storage '0', which has 64"),
        (TensorRef(STORAGE, 0, (1 << 40,), (1,)), "needs 4,398,046,511,104 bytes"),
        (TensorRef(StorageRef("0", "F32", 8), 0, (16,), (1,)), "needs 64 bytes"),
        (TensorRef(StorageRef("1", "F32", 16), 0, (4,), (1,)), "of the storage '1', which has 0"),
        (TensorRef(STORAGE, 0, (4, 4), (1,)), "has the shape"),
        (TensorRef(StorageRef("0", "LongStorage", 8), 0, (2,), (1,)), "'w' is a LongStorage, and Puna reads"),
    ],
)
def test_tensors_are_checked(tmp_path: Path, ref: TensorRef, message: str) -> None:
    with pytest.raises(BadFile, match=message):
        PthFile.open(tensor_file(tmp_path / "x.pth", ref))


def test_other_archives(tmp_path: Path) -> None:
    good = TensorRef(STORAGE, 0, (16,), (1,))
    big = tensor_file(tmp_path / "big.pth", good, byteorder=b"big")
    with pytest.raises(Unsupported, match="big endian"):
        PthFile.open(big)
    with pytest.raises(Unsupported, match=r"saved by torch before 1\.6"):
        PthFile.open(FOLDER / "legacy" / "consolidated.00.pth")
    packed = archive_of(tmp_path / "packed.pth", write_tensors({"w": good}), zipfile.ZIP_DEFLATED)
    with pytest.raises(Unsupported, match="is compressed or encrypted"):
        PthFile.open(packed)
    with zipfile.ZipFile(tmp_path / "none.pth", "w") as archive:
        archive.writestr("m/readme", "hello" * 10)
    with pytest.raises(BadFile, match=r"one data\.pkl inside, found 0"):
        PthFile.open(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello " * 10)
    with pytest.raises(BadFile, match="expected it to start with"):
        PthFile.open(tmp_path / "text.pth")
    (tmp_path / "cut.pth").write_bytes(ONE.read_bytes()[:-100])
    with pytest.raises(BadFile, match="table at the end is damaged or cut off"):
        PthFile.open(tmp_path / "cut.pth")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_pickle_or_refused(raw: bytes) -> None:
    with suppress(BadFile):
        read_tensors(raw)


def test_damaged_files_open_or_are_refused(tmp_path: Path) -> None:
    raw = ONE.read_bytes()
    tables = [*range(3000), *range(len(raw) - 3000, len(raw))]
    statuses: Counter[str] = Counter()
    for case in range(500):
        rng = np.random.default_rng([0, case])
        damaged = bytearray(raw)
        for _ in range(int(rng.integers(1, 4))):
            damaged[tables[int(rng.integers(len(tables)))]] = int(rng.integers(256))
        if rng.random() < 0.1:
            del damaged[int(rng.integers(len(raw))) :]
        path = tmp_path / "case.pth"
        path.write_bytes(damaged)
        read_all(PthFile.open, path, statuses, 1 << 21, case)
    assert statuses["opened"] > 50
    assert statuses["refused"] > 100
