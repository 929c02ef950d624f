"""Checkpoints in Hugging Face's and Meta's layout, from a hub on the loopback and from folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from golden.tiny import TINY
from weights.fake_hub import FakeHub
from weights.hf_folder import write_hf
from weights.pull.hubs import serve
from weights.store_helpers import leftovers

from puna.core import BadFile, BadInput, DiskFull, Unsupported
from puna.model import catalog
from puna.weights import disk, store
from puna.weights.convert import convert
from puna.weights.load import open_checkpoint
from puna.weights.targets import Texts, plan

Files = dict[str, bytes]
BESIDE = {"tokenizer.json": b"{}", "LICENSE.txt": b"Be kind.", "USE_POLICY.md": b"Be kind."}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "home"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, hf: Files, meta: Files) -> Iterator[FakeHub]:
    others = {"README.md": b"hello", "pytorch_model.bin": bytes(9), "onnx/model.onnx": bytes(9)}
    original = {f"original/{name}": data for name, data in meta.items()}
    with serve(monkeypatch, {"owner/Tiny-hf": {**hf, **BESIDE, **others, **original}}) as hub:
        yield hub


def files_of(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """In three shards and an index."""
    source = write_hf(TINY["llama2"], tmp_path_factory.mktemp("source") / "hf")
    return converted(source, "hf", shard_bytes=600_000)


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Files:
    source = write_hf(TINY["llama2"], tmp_path_factory.mktemp("source") / "hf")
    return converted(source, "meta", n_files=2)


def converted(source: Path, form: str, **options: int) -> Files:
    with open_checkpoint(source) as checkpoint:
        made = plan(checkpoint, form, Texts({}, {}, {}), **options)  # type: ignore[arg-type]
        convert(made, source.parent / f"{form}-made")
    return files_of(source.parent / f"{form}-made")


def test_a_repository_in_hugging_faces_layout(home: Path, hub: FakeHub, hf: Files) -> None:
    stored = store.pull("hf:owner/Tiny-hf")
    assert stored.name == "tiny-hf"
    assert {file.name for file in stored.files} == {f"Tiny-hf/{name}" for name in (*hf, *BESIDE)}
    assert stored.path.name == "Tiny-hf"
    assert files_of(stored.path) == {**hf, **BESIDE}
    with open_checkpoint(store.resolve("tiny-hf")) as checkpoint:
        assert checkpoint.config == TINY["llama2"].config
        assert len(checkpoint.files) == 3
    asked = len(hub.ranges)
    assert store.pull("hf:owner/Tiny-hf") == store.verify("tiny-hf") == stored
    assert len(hub.ranges) == asked
    assert store.remove("tiny-hf") == stored.size
    assert [name for name in leftovers(home) if not name.startswith("hf")] == []


def test_a_folder_of_a_repository_in_metas_layout(home: Path, hub: FakeHub, meta: Files) -> None:
    stored = store.pull("hf:owner/Tiny-hf/original", name="original")
    assert files_of(stored.path) == meta
    with open_checkpoint(store.resolve("original")) as checkpoint:
        assert len(checkpoint.files) == 2


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf:owner/Tiny-hf/config.json", "tiny-hf"),
        ("hf:owner/Tiny-hf/model-00002-of-00003.safetensors@v1", "tiny-hf"),
        ("hf:owner/Tiny-hf/original/params.json", "original"),
    ],
)
def test_a_file_of_it_stands_for_the_folder(home: Path, hub: FakeHub, source: str, name: str) -> None:
    stored = store.pull(source)
    assert (stored.name, stored.path.is_dir()) == (name, True)
    open_checkpoint(stored.path).close()


def test_vision_files_beside_a_folder_do_not_make_it_gguf(home: Path, hub: FakeHub, hf: Files) -> None:
    hub.repos["owner/both"] = {**hf, "mmproj-f16.gguf": b"GGUF"}
    assert files_of(store.pull("hf:owner/both").path) == hf


def test_a_model_of_the_catalog(home: Path, hub: FakeHub, hf: Files) -> None:
    entry = catalog.find("llama-3.2-1b-instruct")
    hub.repos["meta-llama/Llama-3.2-1B-Instruct"] = hf
    stored = store.pull("llama-3.2-1b-instruct")
    assert (stored.name, stored.licence) == ("llama-3.2-1b-instruct", entry.licence)
    assert store.resolve("llama-3.2-1b-instruct") == stored.path


@pytest.mark.parametrize("named", ["", "config.json", "model.safetensors.index.json"])
def test_a_folder_of_this_machine(home: Path, tmp_path: Path, hf: Files, named: str) -> None:
    folder = tmp_path / "My-Model"
    folder.mkdir()
    for name, data in {**hf, "notes.md": b"mine", "model-00001-of-00009.safetensors": b"old"}.items():
        (folder / name).write_bytes(data)
    stored = store.pull(str(folder / named))
    assert stored.name == "my-model"
    assert files_of(stored.path) == hf
    assert store.resolve("my-model") == stored.path


def test_what_config_json_says_is_asked_before_the_weights(home: Path, hub: FakeHub, hf: Files) -> None:
    described = json.loads(hf["config.json"])
    other = {**hf, "config.json": json.dumps({**described, "model_type": "qwen2"}).encode()}
    hub.repos["owner/other"] = other
    with pytest.raises(Unsupported, match=r"hf:owner/other: .*qwen2"):
        store.pull("hf:owner/other")
    assert len(hub.ranges) == sum(1 for name in hf if name.endswith(".json"))
    assert leftovers(home) == []


def test_damaged_and_missing_weights(home: Path, hub: FakeHub, hf: Files, tmp_path: Path) -> None:
    first, second, _ = (name for name in sorted(hf) if name.endswith(".safetensors"))
    hub.repos["owner/less"] = {name: data for name, data in hf.items() if name != second}
    with pytest.raises(BadFile, match=f"hf:owner/less lacks {second}, which model.safetensors.index.json"):
        store.pull("hf:owner/less")
    hub.repos["owner/cut"] = {**hf, first: hf[first][:50]}
    with pytest.raises(BadFile, match=f"^{first} cannot be pulled: "):
        store.pull("hf:owner/cut")
    hub.repos["owner/odd"] = {**hf, "config.json": b"[1]"}
    with pytest.raises(BadFile, match=r"^hf:owner/odd: config.json"):
        store.pull("hf:owner/odd")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"")
    with pytest.raises(BadInput, match=r"no config.json|holds no checkpoint"):
        store.pull(str(tmp_path / "empty"))
    assert leftovers(home) == []


def test_it_goes_on_where_it_broke_off(home: Path, hub: FakeHub, hf: Files) -> None:
    def interrupt(what: str, done: int, total: int | None) -> None:
        if what.endswith("model-00002-of-00003.safetensors") and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull("hf:owner/Tiny-hf", interrupt)
    asked = len(hub.ranges)
    assert files_of(store.pull("hf:owner/Tiny-hf").path) == {**hf, **BESIDE}
    assert len(hub.ranges) - asked <= 2  # what had arrived is not asked for again


def test_room_is_asked_for_before_the_weights(
    home: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 100_000)
    with pytest.raises(DiskFull):
        store.pull("hf:owner/Tiny-hf")
    assert all(wanted == "bytes=0-" for wanted in hub.ranges)
    assert len(hub.ranges) <= 5
