"""Conversions: bit for bit there and back, interrupted and resumed, and what leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.checkpoints import FOLDER
from golden.tiny import TINY
from safetensors.numpy import load_file
from weights.hf_folder import write_hf

from puna.core import BadFile, BadInput, BadValue, DiskFull, Unsupported, WorkFailed
from puna.weights import convert as module
from puna.weights.blocks.tensor import RawTensor
from puna.weights.convert import convert
from puna.weights.files.gguf import GgufFile
from puna.weights.files.safetensors import SafetensorsFile
from puna.weights.folder import Format
from puna.weights.load import open_checkpoint, write_checkpoint
from puna.weights.synthetic import synthetic_checkpoint
from puna.weights.targets import Texts, plan

NO_TEXTS = Texts({}, {}, {})
KINDS = ("F32", "F16", "BF16")


def convert_to(source: Path, destination: Path, form: Format, **options: Any) -> module.Converted:
    with open_checkpoint(source) as checkpoint:
        return convert(plan(checkpoint, form, NO_TEXTS, **{"name": "m", **options}), destination)


def safetensors_of(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with SafetensorsFile.open(path) as file:
            for tensor in file.raw_tensors():
                found[tensor.name] = (tensor.kind, tensor.shape, tensor.data().tobytes())
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["llama1", "llama2", "llama3", "llama31", "llama32", "wide", "linear", "yarn"]
)
def test_hf_to_gguf_and_back(name: str, kind: str, tmp_path: Path) -> None:
    source = write_hf(TINY[name], tmp_path / "hf", kind)
    convert_to(source, tmp_path / "m.gguf", "gguf")
    convert_to(tmp_path / "m.gguf", tmp_path / "back", "hf", shard_bytes=200_000)
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1
    assert safetensors_of(tmp_path / "back") == safetensors_of(source)
    described = json.loads((tmp_path / "back" / "config.json").read_text())
    for key, value in TINY[name].hf.items():
        if key not in ("rope_scaling", "architectures"):
            assert described[key] == value, key
    with open_checkpoint(source) as a, open_checkpoint(tmp_path / "back") as b:
        assert a.config.norm_eps == b.config.norm_eps
        if name != "yarn":
            assert a.config == b.config


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_wide_norms_come_back_as_they_were(kind: str, tmp_path: Path) -> None:
    """Even where rounding them would change nothing."""
    source = write_hf(TINY["llama2"], tmp_path / "hf", kind, "F32")
    convert_to(source, tmp_path / "m.gguf", "gguf")
    convert_to(tmp_path / "m.gguf", tmp_path / "back", "hf")
    assert safetensors_of(tmp_path / "back") == safetensors_of(source)


def test_norms_of_other_peoples_files(tmp_path: Path) -> None:
    """llama.cpp stores them as F32 and does not say what they were: exact rounding is undone."""
    with open_checkpoint(write_hf(TINY["llama2"], tmp_path / "hf", "BF16")) as checkpoint:
        target = plan(checkpoint, "gguf", NO_TEXTS, name="m")
        convert(target, tmp_path / "m.gguf")
    with GgufFile.open(tmp_path / "m.gguf") as file:
        entries = {k: v for k, v in file.metadata.encoded.items() if not k.startswith("puna.")}
        from puna.weights.files.gguf import write_gguf

        write_gguf(tmp_path / "other.gguf", entries, list(file.raw_tensors()))
    convert_to(tmp_path / "other.gguf", tmp_path / "back", "hf")
    assert safetensors_of(tmp_path / "back") == safetensors_of(tmp_path / "hf")


@pytest.mark.parametrize(("name", "n_files"), [("llama2", 2), ("llama3", 2), ("one", 1)])
def test_meta_to_hf_and_back(name: str, n_files: int, tmp_path: Path) -> None:
    convert_to(FOLDER / name, tmp_path / "hf", "hf")
    convert_to(tmp_path / "hf", tmp_path / "back", "meta", n_files=n_files)
    for i in range(n_files):
        from puna.weights.files.pth import PthFile

        file_name = f"consolidated.{i:02d}.pth"
        with PthFile.open(FOLDER / name / file_name) as a, PthFile.open(tmp_path / "back" / file_name) as b:
            theirs = {t.name: t for t in a.raw_tensors() if t.name != "rope.freqs"}
            ours = {t.name: t for t in b.raw_tensors()}
            assert ours.keys() == theirs.keys()
            for key, tensor in theirs.items():
                assert (ours[key].kind, ours[key].shape) == (tensor.kind, tensor.shape)
                np.testing.assert_array_equal(ours[key].data(), tensor.data())


def test_tied_models_through_meta(tmp_path: Path) -> None:
    config = replace(TINY["llama2"].config, tied=True)
    write_checkpoint(synthetic_checkpoint(config, "f32"), tmp_path / "m.gguf")
    result = convert_to(tmp_path / "m.gguf", tmp_path / "meta", "meta", n_files=2)
    assert result.n_tensors == 21
    convert_to(tmp_path / "meta", tmp_path / "hf", "hf")
    assert "lm_head.weight" not in safetensors_of(tmp_path / "hf")
    with open_checkpoint(tmp_path / "m.gguf") as a, open_checkpoint(tmp_path / "hf") as b:
        assert b.config.tied
        for key, tensor in a.tensors.items():
            np.testing.assert_array_equal(tensor.data(), b.tensors[key].data())


@pytest.mark.parametrize("dtype", KINDS)
def test_rounding(dtype: str, tmp_path: Path) -> None:
    source = write_hf(TINY["llama2"], tmp_path / "hf")
    convert_to(source, tmp_path / "out", "hf", dtype=dtype)
    assert safetensors_of(tmp_path / "out") == safetensors_of(
        write_hf(TINY["llama2"], tmp_path / "wanted", dtype)
    )


def test_quantized_models_need_a_dtype(tmp_path: Path) -> None:
    write_checkpoint(synthetic_checkpoint(TINY["llama2"].config, "q4_0"), tmp_path / "q.gguf")
    with pytest.raises(Unsupported, match=r"is Q\w+, which \w+ files do not hold; add --dtype bf16"):
        convert_to(tmp_path / "q.gguf", tmp_path / "out", "hf")
    convert_to(tmp_path / "q.gguf", tmp_path / "out", "hf", dtype="F32")
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(safetensors_of(tmp_path / "out"))
    convert_to(tmp_path / "q.gguf", tmp_path / "copy.gguf", "gguf")
    with open_checkpoint(tmp_path / "q.gguf") as a, open_checkpoint(tmp_path / "copy.gguf") as b:
        assert {n: t.kind for n, t in a.tensors.items()} == {n: t.kind for n, t in b.tensors.items()}


def with_values(folder: Path, name: str, value: float, kind: str = "F32") -> Path:
    """The folder with one number of a tensor changed, in place."""
    code, raw = {"F32": ("<f4", 4), "BF16": ("<u2", 2)}[kind]
    with SafetensorsFile.open(folder / "model.safetensors") as file:
        offset = file.tensors[name].offset
    with (folder / "model.safetensors").open("r+b") as out:
        out.seek(offset + 5 * raw)
        number = np.float32(value)
        out.write(number.astype(code).tobytes() if kind == "F32" else number.tobytes()[2:])
    return folder


@pytest.mark.parametrize("kind", ["F32", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value: float, kind: str, tmp_path: Path) -> None:
    folder = write_hf(TINY["llama2"], tmp_path / "hf", kind)
    with_values(folder, "model.layers.1.mlp.down_proj.weight", value, kind)
    with pytest.raises(BadFile, match=r"'.*' holds values that are infinite or not a number"):
        convert_to(folder, tmp_path / "out.gguf", "gguf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_values_that_do_not_fit(tmp_path: Path) -> None:
    folder = with_values(write_hf(TINY["llama2"], tmp_path / "hf"), "lm_head.weight", 1e6)
    with pytest.raises(BadValue, match=r"'output' has values up to 1e\+06, which F16 cannot hold"):
        convert_to(folder, tmp_path / "out", "hf", dtype="F16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wide", "no width of heads of its own"),
        ("linear", "'linear' rope"),
        ("llama31", "this model's rope_scaling"),
    ],
)
def test_what_meta_cannot_state(name: str, message: str, tmp_path: Path) -> None:
    source = write_hf(TINY[name], tmp_path / "hf")
    with pytest.raises(Unsupported, match=message):
        convert_to(source, tmp_path / "out", "meta")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_places_that_are_taken(tmp_path: Path) -> None:
    source = write_hf(TINY["llama2"], tmp_path / "hf")
    with pytest.raises(BadInput, match="exists already"):
        convert_to(source, source, "hf")
    with pytest.raises(BadInput, match="there is no folder"):
        convert_to(source, tmp_path / "a" / "b", "hf")
    (tmp_path / "out.partial").mkdir()
    with pytest.raises(BadInput, match="is in the way"):
        convert_to(source, tmp_path / "out", "hf")


def test_a_full_disk_is_noticed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_hf(TINY["llama2"], tmp_path / "hf")
    monkeypatch.setattr(module, "free_bytes", lambda folder: 1000)
    with pytest.raises(DiskFull, match="has 1,000 free"):
        convert_to(source, tmp_path / "out", "hf")


class Killed(BaseException): ...


def killed_after(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make writing die at the nth piece, after syncing every tensor."""
    real, count = module.write_piece, 0

    def write(*args: Any) -> int:
        nonlocal count
        count += 1
        if count > n:
            raise Killed
        return int(real(*args))

    monkeypatch.setattr(module, "write_piece", write)
    monkeypatch.setattr(module, "_SYNC_BYTES", 1)


@pytest.mark.parametrize("form", ["gguf", "hf", "meta"])
def test_resuming(form: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_hf(TINY["llama2"], tmp_path / "hf")
    place = tmp_path / ("out.gguf" if form == "gguf" else "out")
    whole = tmp_path / ("whole.gguf" if form == "gguf" else "whole")
    convert_to(source, whole, form)
    with monkeypatch.context() as patch:
        killed_after(9, patch)
        with pytest.raises(Killed):
            convert_to(source, place, form)
    assert not place.exists()
    reads: list[str] = []
    with open_checkpoint(source) as checkpoint:

        def watched(tensor: RawTensor) -> RawTensor:
            def data() -> np.ndarray:
                reads.append(tensor.name)
                return tensor.data()

            return replace(tensor, data=data)

        spied = replace(checkpoint, tensors={n: watched(t) for n, t in checkpoint.tensors.items()})
        result = convert(plan(spied, form, NO_TEXTS, name="m"), place, verify=False)
    assert result.resumed == 9
    assert len(reads) == 21 - 9
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["hf", place.name, whole.name])
    files = [(whole, place)] if form == "gguf" else [(p, place / p.name) for p in whole.iterdir()]
    assert all(a.read_bytes() == b.read_bytes() for a, b in files)


def test_another_conversion_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal belongs to sources and options as they were."""
    source = write_hf(TINY["llama2"], tmp_path / "hf")
    for change in ("dtype", "source"):
        with monkeypatch.context() as patch:
            killed_after(9, patch)
            with pytest.raises(Killed):
                convert_to(source, tmp_path / change, "hf")
        if change == "source":
            with_values(source, "lm_head.weight", 3.0)
        result = convert_to(source, tmp_path / change, "hf", dtype="BF16" if change == "dtype" else None)
        assert result.resumed == 0


def test_verification_finds_what_a_disk_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_hf(TINY["llama2"], tmp_path / "hf")
    real = module.write_frame

    def damage(file: Any, layout: Any, crcs: Any) -> None:
        real(file, layout, crcs)
        offset = layout.pieces[5][0]
        file.seek(offset)
        file.write(b"\x01")

    monkeypatch.setattr(module, "write_frame", damage)
    with pytest.raises(WorkFailed, match=r"tensor '.*' reads back differently"):
        convert_to(source, tmp_path / "out", "hf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_two_at_once(tmp_path: Path) -> None:
    source = write_hf(TINY["llama2"], tmp_path / "hf")
    from puna.weights.disk import locked

    (tmp_path / "out.partial").mkdir()
    with locked(tmp_path / "out.partial" / module._LOCK, lambda: None):
        with pytest.raises(BadInput, match="another process is writing"):
            convert_to(source, tmp_path / "out", "hf")
        assert (tmp_path / "out.partial").exists()


def test_a_killed_process_is_resumed(tmp_path: Path) -> None:
    """SIGKILL in the middle of a real command; the same command ends the work."""
    source = write_hf(TINY["llama2"], tmp_path / "hf")
    code = (
        "import sys, os, signal\n"
        "from puna.weights import convert as m\n"
        "real, m._SYNC_BYTES = m.write_piece, 1\n"
        "def write(file, offset, piece, data):\n"
        "    if 'layers.1' in piece.name: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(file, offset, piece, data)\n"
        "m.write_piece = write\n"
        "from puna.cli.main import main\n"
        "main(sys.argv[1:])\n"
    )
    argv = ["convert", str(source), str(tmp_path / "out"), "--to", "hf", "--json"]
    died = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, env=os.environ)
    assert died.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    done = subprocess.run([sys.executable, "-m", "puna", *argv], capture_output=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["resumed"] == 10
    assert report["verified"]
    assert safetensors_of(tmp_path / "out") == safetensors_of(source)
