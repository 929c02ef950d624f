"""Pulls from a hub on the loopback: which file, which errors, and going on where a download broke off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from weights.fake_hub import COMMIT, FakeHub
from weights.pull.hubs import serve
from weights.seeing_gguf import write_seeing
from weights.store_helpers import leftovers, model_bytes, spawn

from puna.core import BadFile, BadInput, DiskFull, DownloadFailed, UnknownModel, Unsupported
from puna.weights import disk, store
from puna.weights.load import open_checkpoint

BIG = model_bytes(3_000_000)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "home"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    repos = {
        "owner/one": {"README.md": b"hello", "One-Q4_0.gguf": BIG},
        "owner/two": {"a-Q4_0.gguf": BIG, "sub/a-Q8_0.gguf": model_bytes(seed=8)},
        "owner/split": {f"S-{i:05d}-of-00002.gguf": model_bytes(seed=i) for i in (1, 2)},
        "owner/cut": {"C-00001-of-00002.gguf": model_bytes()},
        "owner/none": {"model.safetensors": bytes(10), "vocab.json": b"{}"},
        "owner/fake": {"letter.gguf": b"Dear Sir or Madam"},
        "owner/damaged": {"cut.gguf": model_bytes()[:20]},
    }
    with serve(monkeypatch, repos) as hub:
        yield hub


def test_the_only_model_of_a_repository(home: Path, hub: FakeHub) -> None:
    seen: list[tuple[str, int, int | None]] = []
    stored = store.pull("hf:owner/one", lambda *step: seen.append(step))
    assert stored.path.read_bytes() == BIG
    assert (stored.name, stored.source) == ("one-q4_0", "hf:owner/one")
    assert seen[-1] == ("downloading One-Q4_0.gguf", len(BIG), len(BIG))
    assert [name for name in leftovers(home) if name.startswith("partial")] == []


def test_endpoint_comes_from_the_environment(home: Path, hub: FakeHub) -> None:
    command = [sys.executable, "-m", "puna.cli.main", "pull", "hf:owner/two/sub/a-Q8_0.gguf@v1"]
    done = subprocess.run(command, env={**os.environ, "HF_ENDPOINT": hub.url}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert store.resolve("a-q8_0").read_bytes() == model_bytes(seed=8)
    assert store.resolve("hf:owner/two/sub/a-Q8_0.gguf@v1").name == "a-Q8_0.gguf"


def test_several_models_want_a_choice(home: Path, hub: FakeHub) -> None:
    with pytest.raises(BadInput, match=r"holds 2 models; name one of them: a-Q4_0.gguf, sub/a-Q8_0.gguf"):
        store.pull("hf:owner/two")
    with pytest.raises(UnknownModel, match=r"no file 'a-Q4_1.gguf'; did you mean 'a-Q4_0.gguf'"):
        store.pull("hf:owner/two/a-Q4_1.gguf")


def test_a_split_set_arrives_whole_from_any_part(home: Path, hub: FakeHub) -> None:
    stored = store.pull("hf:owner/split/S-00002-of-00002.gguf")
    assert [file.name for file in stored.files] == ["S-00001-of-00002.gguf", "S-00002-of-00002.gguf"]
    assert stored.path.read_bytes() == model_bytes(seed=1)
    with pytest.raises(BadFile, match=r"lacks part C-00002-of-00002.gguf"):
        store.pull("hf:owner/cut")


def test_what_is_no_model_is_refused(home: Path, hub: FakeHub) -> None:
    with pytest.raises(Unsupported, match=r"hf:owner/none holds no checkpoint \(found: .json, .saf"):
        store.pull("hf:owner/none")
    with pytest.raises(BadFile, match=r"letter.gguf is not a GGUF file"):
        store.pull("hf:owner/fake")
    with pytest.raises(BadFile, match=r"^cut.gguf cannot be pulled: "):
        store.pull("hf:owner/damaged")
    assert leftovers(home) == []


def test_refusals_of_the_hub_become_sentences(home: Path, hub: FakeHub) -> None:
    hub.gated.add("owner/one")
    with pytest.raises(DownloadFailed, match=r"owner/one is gated: accept its licence .*`hf auth login`"):
        store.pull("hf:owner/one")
    with pytest.raises(UnknownModel, match="no repository 'owner/absent'"):
        store.pull("hf:owner/absent")
    with pytest.raises(BadInput, match="no revision 'v2'"):
        store.pull("hf:owner/two/a-Q4_0.gguf@v2")


def test_a_hub_out_of_reach_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadFailed, match="the download of hf:owner/one failed"):
        store.pull("hf:owner/one")


def test_a_broken_connection_is_taken_up(home: Path, hub: FakeHub) -> None:
    hub.break_after = 1_000_000
    assert store.pull("hf:owner/one").path.read_bytes() == BIG
    assert hub.ranges == ["bytes=0-", "bytes=1000000-"]


def test_ctrl_c_keeps_what_has_arrived(home: Path, hub: FakeHub) -> None:
    def interrupt(what: str, done: int, total: int | None) -> None:
        if done >= 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull("hf:owner/one", interrupt)
    (part,) = home.glob("partial/*/*.part")
    arrived = part.stat().st_size
    assert arrived >= 1_000_000
    assert store.pull("hf:owner/one").path.read_bytes() == BIG
    assert hub.ranges == ["bytes=0-", f"bytes={arrived}-"]


def test_a_server_without_ranges_sends_everything_again(home: Path, hub: FakeHub) -> None:
    hub.break_after, hub.knows_ranges = 1_000_000, False
    assert store.pull("hf:owner/one").path.read_bytes() == BIG


def test_killed_half_way_the_next_pull_goes_on(home: Path, hub: FakeHub) -> None:
    hub.pause = 0.03
    child = spawn("from puna.weights import store; store.pull('hf:owner/one')", home, HF_ENDPOINT=hub.url)
    parts: list[Path] = []
    while not parts or parts[0].stat().st_size < 500_000:
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.01)
        parts = list(home.glob("partial/*/*.part"))
    child.send_signal(signal.SIGKILL)
    child.communicate()
    hub.pause = 0.0
    arrived = parts[0].stat().st_size
    assert store.list_models() == []
    assert store.pull("hf:owner/one").path.read_bytes() == BIG
    assert hub.ranges[-1] == f"bytes={arrived}-"
    assert arrived >= 500_000


def test_a_server_that_sends_nothing_is_given_up(
    home: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puna.weights.pull.hub._PAUSES", (0, 0))
    hub.repos["owner/one"]["One-Q4_0.gguf"] = Promised(BIG)
    with pytest.raises(DownloadFailed, match="the server sent nothing"):
        store.pull("hf:owner/one")
    assert len(hub.ranges) == 3


class Promised(bytes):
    """Listed with its size, and sent as nothing."""

    def __getitem__(self, key: object) -> bytes:
        return b""


def test_other_bytes_than_listed_are_refused_and_dropped(
    home: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    promise = FakeHub({"owner/one": {"One-Q4_0.gguf": BIG}})
    monkeypatch.setattr(hub, "_listing", promise._listing)
    hub.repos["owner/one"]["One-Q4_0.gguf"] = BIG[:-1] + b"!"
    with pytest.raises(DownloadFailed, match="should have sha256"):
        store.pull("hf:owner/one")
    assert leftovers(home) == []


def test_room_is_asked_for_what_is_still_to_come(
    home: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 2_000_000)
    with pytest.raises(DiskFull, match=r"needs 3,000,004 bytes"):
        store.pull("hf:owner/one")
    assert hub.ranges == []


def test_the_commit_is_pinned_during_a_pull(
    home: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[str] = []
    real = huggingface_hub.hf_hub_url
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_url", lambda repo, name, revision: asked.append(revision) or real(repo, name)
    )
    store.pull("hf:owner/split")
    assert asked == [COMMIT, COMMIT]


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A text file and its vision file."""
    path = write_seeing(tmp_path_factory.mktemp("seeing") / "Scout.gguf")
    return path.read_bytes(), (path.parent / "mmproj-Scout.gguf").read_bytes()


def test_a_vision_file_comes_with_its_model(home: Path, hub: FakeHub, seeing: tuple[bytes, bytes]) -> None:
    text, vision = seeing
    others = {"mmproj-BF16.gguf": model_bytes(), "mmproj-F32.gguf": model_bytes()}
    hub.repos["owner/sees"] = {"Q8_0/Scout-Q8_0.gguf": text, "mmproj-F16.gguf": vision, **others}
    stored = store.pull("hf:owner/sees")
    assert [file.name for file in stored.files] == ["Scout-Q8_0.gguf", "mmproj-F16.gguf"]
    assert (stored.name, stored.vision_file) == ("scout-q8_0", "mmproj-F16.gguf")
    with open_checkpoint(store.resolve("hf:owner/sees")) as checkpoint:
        assert checkpoint.config.vision is not None
    assert store.verify("scout-q8_0") == stored
    assert store.remove("scout-q8_0") == len(text) + len(vision)
    assert [name for name in leftovers(home) if not name.startswith("hf")] == []


def test_without_its_vision_file(home: Path, hub: FakeHub, seeing: tuple[bytes, bytes]) -> None:
    hub.repos["owner/sees"] = {"Scout.gguf": seeing[0], "mmproj-F16.gguf": seeing[1]}
    stored = store.pull("hf:owner/sees", mmproj=False)
    assert ([file.name for file in stored.files], stored.vision_file) == (["Scout.gguf"], None)
    assert len(hub.ranges) == 1
    with open_checkpoint(stored.path) as checkpoint:
        assert checkpoint.config.vision is None


def test_a_vision_file_is_taken_up_where_it_broke_off(
    home: Path, hub: FakeHub, seeing: tuple[bytes, bytes]
) -> None:
    hub.repos["owner/sees"] = {"Scout.gguf": seeing[0], "mmproj-F16.gguf": seeing[1]}

    def interrupt(what: str, done: int, total: int | None) -> None:
        if "mmproj" in what and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull("hf:owner/sees", interrupt)
    assert store.list_models() == []
    assert store.pull("hf:owner/sees").vision_file == "mmproj-F16.gguf"
    assert [wanted for wanted in hub.ranges if wanted == "bytes=0-"] == ["bytes=0-"] * 2


def test_a_vision_file_by_itself(home: Path, hub: FakeHub, seeing: tuple[bytes, bytes]) -> None:
    hub.repos["owner/sees"] = {"mmproj-F16.gguf": seeing[1], "mmproj-b.gguf": seeing[1], "c.gguf": seeing[0]}
    stored = store.pull("hf:owner/sees/mmproj-F16.gguf")
    assert ([file.name for file in stored.files], stored.vision_file) == (["mmproj-F16.gguf"], None)


def test_text_models_leave_vision_files_alone(home: Path, hub: FakeHub, seeing: tuple[bytes, bytes]) -> None:
    hub.repos["owner/blind"] = {"llava.gguf": BIG, "mmproj-F16.gguf": seeing[1]}
    assert [file.name for file in store.pull("hf:owner/blind").files] == ["llava.gguf"]
    assert len(hub.ranges) == 1


def test_vision_files_of_other_models(
    home: Path, hub: FakeHub, seeing: tuple[bytes, bytes], tmp_path: Path
) -> None:
    text, vision = seeing
    hub.repos["owner/sees"] = {"c.gguf": text, "mmproj-a.gguf": vision, "mmproj-b.gguf": vision}
    with pytest.raises(BadInput, match=r"holds 2 vision files .* pull the text alone with --no-mmproj"):
        store.pull("hf:owner/sees")
    assert hub.ranges == []
    wider = write_seeing(tmp_path / "c.gguf", dim=64).read_bytes()
    hub.repos["owner/sees"] = {"c.gguf": wider, "mmproj-a.gguf": vision}
    message = r"^mmproj-a.gguf cannot be pulled: .* width 32, and the text file's is 64; .* with --no-mmproj$"
    with pytest.raises(BadFile, match=message):
        store.pull("hf:owner/sees")
    hub.repos["owner/sees"] = {"c.gguf": text, "mmproj-a.gguf": vision[:20]}
    with pytest.raises(BadFile, match=r"^mmproj-a.gguf cannot be pulled: "):
        store.pull("hf:owner/sees")
    assert store.list_models() == []
