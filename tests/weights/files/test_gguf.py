"""The GGUF reader and writer against the gguf package, and against damage of every kind."""

from __future__ import annotations

import itertools
import os
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as GgmlType

from puna.core import BadFile, BadValue, DiskFull
from puna.weights.blocks.formats import GGUF_FORMATS, n_bytes
from puna.weights.blocks.quant import random_blocks
from puna.weights.blocks.tensor import RawTensor
from puna.weights.files import gguf as puna_gguf
from puna.weights.files.gguf import GgufFile, write_gguf
from puna.weights.files.values import Value, ValueType, string_starts

U32, STRING = ValueType.UINT32, ValueType.STRING


def tensor(name: str, kind: str = "F32", shape: tuple[int, ...] = (2, 256)) -> RawTensor:
    data = random_blocks(kind, shape, np.random.default_rng(len(name)))
    return RawTensor(name, kind, shape, lambda: data)


def peer_file(path: Path, version: int = 3, alignment: int | None = None) -> dict[str, Any]:
    """A file of the gguf package with every type of value and every kind of tensor; returns the metadata."""
    w = gguf.GGUFWriter(path, "llama")
    if alignment is not None:
        w.add_custom_alignment(alignment)
    metadata: dict[str, Any] = {
        "u8": 255, "i8": -128, "u16": 65535, "i16": -32768, "u32": 2**32 - 1, "i32": -(2**31),
        "u64": 2**64 - 1, "i64": -(2**63), "f32": 0.5, "f64": 1e-300, "yes": True, "text": "höher ☃",
    }  # fmt: skip
    w.add_uint8("u8", 255), w.add_int8("i8", -128), w.add_uint16("u16", 65535), w.add_int16("i16", -32768)
    w.add_uint32("u32", 2**32 - 1), w.add_int32("i32", -(2**31)), w.add_uint64("u64", 2**64 - 1)
    w.add_int64("i64", -(2**63)), w.add_float32("f32", 0.5), w.add_float64("f64", 1e-300)
    w.add_bool("yes", True), w.add_string("text", "höher ☃")
    arrays: dict[str, list[Any]] = {
        "ints": [1, -2, 3], "floats": [0.25, -8.0], "bools": [True, False, True],
        "words": ["", "a", "\0", "x" * 300, "ein Wort", ""] + [f"t{i}" for i in range(3000)] + ["y" * 70000],
    }  # fmt: skip
    for key, items in arrays.items():
        w.add_array(key, items)
    for kind in GGUF_FORMATS:
        for shape in ((256,), (3, 512), (2, 2, 256)):
            data = random_blocks(kind, shape, np.random.default_rng(0))
            rows = data.reshape(*shape[:-1], n_bytes(kind, shape[-1:]))
            w.add_tensor(f"{kind}.{len(shape)}", rows, raw_dtype=GgmlType[kind])
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
    if version != 3:
        raw = bytearray(path.read_bytes())
        raw[4:8] = struct.pack("<I", version)
        path.write_bytes(raw)
    return metadata | arrays


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [None, 8, 4096])
def test_reads_and_rewrites_the_gguf_packages_files(
    version: int, alignment: int | None, tmp_path: Path
) -> None:
    path, copy = tmp_path / "a.gguf", tmp_path / "b.gguf"
    metadata = peer_file(path, version, alignment)
    peer = gguf.GGUFReader(path)
    with GgufFile.open(path) as file:
        assert (file.version, file.alignment) == (version, alignment or 32)
        assert {key: file.metadata[key] for key in metadata} == metadata
        assert next(iter(file.metadata)) == "general.architecture"
        assert len(file.metadata) == len(metadata) + 1 + (alignment is not None)
        assert list(file.tensors) == [t.name for t in peer.tensors]
        for theirs in peer.tensors:
            info = file.tensors[theirs.name]
            assert (info.kind, info.offset, info.n_bytes) == (
                theirs.tensor_type.name,
                theirs.data_offset,
                theirs.n_bytes,
            )
            assert info.shape == tuple(reversed(theirs.shape.tolist()))
            assert file.data(info.name).tobytes() == theirs.data.tobytes()
        write_gguf(copy, file.metadata.encoded, list(file.raw_tensors()), file.version)
    assert copy.read_bytes() == path.read_bytes()


def test_the_gguf_package_reads_ours(tmp_path: Path) -> None:
    values = {
        "general.architecture": Value.of(STRING, "llama"),
        "words": Value.array(STRING, ["ä", "", "b"]),
        "numbers": Value.array(ValueType.INT16, [-1, 2]),
        "general.alignment": Value.of(U32, 64),
    }
    assert values["words"].item_type is STRING
    assert values["general.alignment"].item_type is None
    tensors = [tensor("a", "Q4_K"), tensor("b", "F32", (7,)), tensor("c", "Q5_1", (1, 3, 2, 32))]
    write_gguf(tmp_path / "m.gguf", values, tensors)
    peer = gguf.GGUFReader(tmp_path / "m.gguf")
    assert peer.fields["words"].contents() == ["ä", "", "b"]
    assert peer.fields["numbers"].contents() == [-1, 2]
    assert [(t.name, t.tensor_type.name, t.data.tobytes()) for t in peer.tensors] == [
        (t.name, t.kind, t.data().tobytes()) for t in tensors
    ]
    assert all(t.data_offset % 64 == 0 for t in peer.tensors)


def test_bytes_are_read_only_and_survive_close(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {}, [tensor("a", "F32", (64, 256))])
    file = GgufFile.open(tmp_path / "m.gguf")
    data = file.data("a")
    before = data.tobytes()
    assert not data.flags.writeable
    file.release("a")
    assert data.tobytes() == before
    file.close()
    assert data.tobytes() == before
    with pytest.raises(ValueError, match=r"m\.gguf was closed"):
        file.data("a")


def test_release_gives_the_pages_back(tmp_path: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc")
    write_gguf(tmp_path / "m.gguf", {}, [tensor("a", "F32", (4096, 1024))])
    with GgufFile.open(tmp_path / "m.gguf") as file:
        start = resident()
        file.data("a").max()
        full = resident()
        file.release("a")
        assert full - start > 12 << 20
        assert resident() - start < 4 << 20


def test_release_at_the_very_end(tmp_path: Path) -> None:
    """An empty tensor may begin where the file ends, which may be the border of a large page."""
    path, large = tmp_path / "x.gguf", 1 << 21
    write_gguf(path, {}, [tensor("a", shape=(8,)), tensor("b", shape=(0,))])
    with GgufFile.open(path) as file:
        head = file.tensors["a"].offset
    write_gguf(path, {}, [tensor("a", shape=((large - head) // 4,)), tensor("b", shape=(0,))])
    assert path.stat().st_size == large
    with GgufFile.open(path) as file:
        assert file.tensors["b"].offset == large
        for name in ("a", "b"):
            file.release(name)


def test_no_tensors_and_no_metadata(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {}, [])
    with GgufFile.open(tmp_path / "m.gguf") as file:
        assert not file.metadata
        assert not file.tensors


# String arrays


def encoded(strings: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(struct.pack("<Q", len(s)) + s for s in strings), np.uint8)


@pytest.mark.parametrize("seed", range(30))
def test_string_starts(seed: int) -> None:
    """Any mixture of lengths and of zero bytes, at any place in a window."""
    rng = np.random.default_rng(seed)
    longest = int(rng.choice([3, 20, 255, 300, 5000]))
    zeros = rng.random() < 0.5
    sizes = rng.integers(0 if seed % 3 else 1, longest + 1, int(rng.integers(1, 20000)))
    strings = [bytes(n) if zeros and i % 7 == 0 else rng.bytes(n) for i, n in enumerate(sizes[:4000])]
    strings += [b"ab"] * int(rng.integers(0, 9000))
    expected = [0, *itertools.accumulate(len(s) + 8 for s in strings)]
    data = encoded(strings)
    assert string_starts(data, len(strings), "k").tolist() == expected
    assert string_starts(np.append(data, np.uint8(0)), len(strings), "k").tolist() == expected
    with pytest.raises(BadFile, match="of metadata 'k' ends beyond the file"):
        string_starts(data[:-1], len(strings), "k")
    with pytest.raises(BadFile, match="of metadata 'k' ends beyond the file"):
        string_starts(data, len(strings) + 1, "k")


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    raw = encoded([b"good", b"b\xc3", b"\xa4d"]).tobytes()
    values = {
        "words": Value(ValueType.ARRAY, struct.pack("<IQ", STRING, 3) + raw),
        "word": Value(STRING, struct.pack("<Q", 3) + b"a\xffb"),
        "flag": Value(ValueType.BOOL, b"\2"),
        "flags": Value(ValueType.ARRAY, struct.pack("<IQ", ValueType.BOOL, 3) + b"\0\1\2"),
    }
    write_gguf(tmp_path / "m.gguf", values, [])
    metadata = GgufFile.open(tmp_path / "m.gguf").metadata
    with pytest.raises(BadFile, match=r"'words\[1\]' must be UTF-8 text, found b'\\xc3'"):
        metadata["words"]
    with pytest.raises(BadFile, match="'word' must be UTF-8 text"):
        metadata["word"]
    for key in ("flag", "flags"):
        with pytest.raises(BadFile, match=f"'{key}' must hold booleans of 0 or 1, found 2"):
            metadata[key]


@pytest.mark.parametrize(
    ("value_type", "value"),
    [(U32, -1), (U32, 2**32), (U32, 0.5), (U32, "1"), (STRING, 3), (ValueType.FLOAT32, 1e300)],
)
def test_values_that_do_not_fit(value_type: ValueType, value: Any) -> None:
    with pytest.raises(BadValue, match="cannot hold"):
        Value.of(value_type, value)


# Damage


def rejected(path: Path, raw: bytes) -> str:
    path.write_bytes(raw)
    with pytest.raises(BadFile) as caught:
        GgufFile.open(path)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    values = {
        "general.architecture": Value.of(STRING, "llama"),
        "n": Value.of(U32, 5),
        "words": Value.array(STRING, ["a", "bcd", ""]),
        "numbers": Value.array(ValueType.FLOAT64, [1.0, 2.0]),
    }
    write_gguf(path, values, [tensor("first", "F32", (4,)), tensor("second", "Q8_0", (1, 32))])
    raw = path.read_bytes()
    end = max(i.offset + i.n_bytes for i in GgufFile.open(path).tensors.values())
    for size in range(end):
        message = rejected(path, raw[:size])
        assert "truncated" in message or size < 24, (size, message)
    path.write_bytes(raw[:end])  # padding at the end may be missing
    assert list(GgufFile.open(path).tensors) == ["first", "second"]


def patched(raw: bytes, find: bytes, replacement: bytes, skip: int = 0) -> bytes:
    """`raw` with the bytes at `skip` after the only occurrence of `find` replaced."""
    assert raw.count(find) == 1
    at = raw.index(find) + len(find) + skip
    return raw[:at] + replacement + raw[at + len(replacement) :]


def test_damaged_header_fields(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    values = {"general.alignment": Value.of(U32, 32), "words": Value.array(STRING, ["a"])}
    write_gguf(path, values, [tensor("t.one"), tensor("t.two"), tensor("t.third", "Q4_0", (1, 32))])
    raw = path.read_bytes()

    def message(find: bytes, pack: str, *numbers: int, skip: int = 0) -> str:
        return rejected(path, patched(raw, find, struct.pack(pack, *numbers), skip))

    assert "expected it to start with b'GGUF', found b'GGML'" in rejected(path, b"GGML" + raw[4:])
    assert "version 1 is not supported; supported: 2 and 3" in message(b"GGUF", "<I", 1)
    assert "version 4 is not supported" in message(b"GGUF", "<I", 4)
    assert "big endian" in message(b"GGUF", ">I", 3)
    assert "at most 65,536 tensors" in message(b"GGUF", "<Q", 2**63, skip=4)
    assert "at most 65,536 metadata entries" in message(b"GGUF", "<Q", 2**63, skip=12)
    assert "damaged" in message(b"GGUF", "<Q", 60000, skip=4)
    assert "damaged" in message(b"GGUF", "<Q", 60000, skip=12)

    assert "type number 77" in message(b"words", "<I", 77)
    assert "array of arrays" in message(b"words", "<I", 9, skip=4)
    assert "type number 13" in message(b"words", "<I", 13, skip=4)
    assert "metadata 'words' needs" in message(b"words", "<Q", 2**61, skip=8)
    assert "metadata 'words' needs" in message(b"words", "<IQ", 6, 2**62, skip=4)
    assert "string 0 of metadata 'words'" in message(b"words", "<Q", 2**64 - 1, skip=16)
    for alignment in (0, 4, 33, 24):
        assert f"power of two from 8, found {alignment}" in message(b"alignment", "<I", alignment, skip=4)
    assert "must be of type UINT32, found INT32" in message(b"alignment", "<I", 5)

    assert "at most 4 axes, found 5" in message(b"t.one", "<I", 5)
    assert "'t.one' ends at byte" in message(b"t.one", "<Q", 2**64 - 256, skip=4)
    assert "type NVFP4 of 't.one' is not supported" in message(b"t.one", "<I", 40, skip=20)
    assert "type number 99 of 't.one'" in message(b"t.one", "<I", 99, skip=20)
    assert "'t.third' of type Q4_0 needs rows of whole 32s, found (1, 33)" in message(
        b"t.third", "<Q", 33, skip=4
    )
    assert "multiple of 32 bytes, found 2,049" in message(b"t.two", "<Q", 2049, skip=24)
    assert "ends at byte" in message(b"t.two", "<Q", 2**64 - 32, skip=24)
    assert "'t.one' and 't.two' overlap" in message(b"t.two", "<Q", 2016, skip=24)
    assert "tensor 't.one' stands twice" in rejected(path, raw.replace(b"t.two", b"t.one"))
    assert "at most 64 bytes, found 65" in rejected(
        path, raw.replace(struct.pack("<Q", 5) + b"t.one", b"A" + bytes(12))
    )
    assert "should be UTF-8" in rejected(path, raw.replace(b"t.one", b"t.\xffne"))
    assert "should be UTF-8" in rejected(path, raw.replace(b"words", b"w\xffrds"))


def test_key_twice(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {"one": Value.of(U32, 1), "two": Value.of(U32, 2)}, [])
    raw = (tmp_path / "m.gguf").read_bytes().replace(b"two", b"one")
    assert "metadata 'one' stands twice" in rejected(tmp_path / "m.gguf", raw)


def test_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "empty", Path("/dev/zero")):
        with pytest.raises(BadFile, match="expected a regular file of at least 24 bytes"):
            GgufFile.open(path)
    with pytest.raises(BadFile, match="none: cannot be read: No such file"):
        GgufFile.open(tmp_path / "none")


# Writing


def test_names_that_the_format_does_not_allow(tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="at most 64 bytes"):
        write_gguf(tmp_path / "m", {}, [tensor("n" * 65)])
    with pytest.raises(BadValue, match="at most 65,535 bytes"):
        write_gguf(tmp_path / "m", {"k" * 65536: Value.of(U32, 1)}, [])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "m").write_bytes(b"old")
    monkeypatch.setattr(puna_gguf, "_write_padded", full)
    with pytest.raises(DiskFull, match="needs 2,048 bytes and the disk is full"):
        write_gguf(tmp_path / "m", {}, [tensor("a")])
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("m", b"old")]
