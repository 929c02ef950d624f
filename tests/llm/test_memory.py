"""What fits: arithmetic on made-up machines, and tables of made-up control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from puna.core import DoesNotFit
from puna.llm import memory
from puna.llm.memory import Needs, Room, available_bytes, fit

# weights of 1,000 bytes, 100 to work in, 10 for each token
LOCAL = Needs(
    "m", 1000, token_bytes=10, workspace_bytes=100, context=10**6, block_tokens=32, local_token_bytes=30,
    local_window=256, step_tokens=64,
)  # fmt: skip
NEEDS = Needs("m", weight_bytes=1000, token_bytes=10, workspace_bytes=100, context=4096, block_tokens=1)


@pytest.mark.parametrize(
    ("context", "batch", "available", "room"),
    [
        (None, None, None, Room(4096, 8 * 4096)),
        (100, 3, None, Room(100, 300)),
        (None, None, 10**9, Room(4096, 8 * 4096)),
        (None, 2, 10**9, Room(4096, 2 * 4096)),
        (100, 3, 1100 + 3000, Room(100, 300)),  # just so
        (None, None, 1100 + 20_000, Room(1500, 1500)),  # three quarters of what is free
        (None, 2, 1100 + 20_000, Room(750, 1500)),
        (2000, None, 1100 + 20_000, Room(2000, 2000)),  # what is asked for may take all
        (200, None, 1100 + 20_000, Room(200, 1500)),  # room for other sequences
        (None, None, 1100 + 6_000, Room(512, 512)),
    ],
)
def test_room(context: int | None, batch: int | None, available: int | None, room: Room) -> None:
    assert fit(NEEDS, context, batch, available) == room


@pytest.mark.parametrize(
    ("context", "batch", "available", "sentence"),
    [
        (300, 1, 1100 + 2999, "a context of 300 tokens needs 0.00 MB.*; a context of 299 fits"),
        (300, 2, 1100 + 3000, "300 tokens for each of 2 sequences needs.*; a context of 150 fits"),
        (None, None, 1100 + 5000, "a context of 512 tokens.*; a context of 500 fits"),
        (10, 1, 900, "use a smaller model"),
    ],
)
def test_what_does_not_fit(context: int | None, batch: int | None, available: int, sentence: str) -> None:
    with pytest.raises(DoesNotFit, match=sentence):
        fit(NEEDS, context, batch, available)


def test_every_sequence_has_whole_blocks() -> None:
    needs = Needs("m", 1000, 10, 100, 4096, block_tokens=32)
    assert fit(needs, 100, 2, None) == fit(needs, 100, 2, 1100 + 2560) == Room(100, 256)
    with pytest.raises(DoesNotFit, match="a context of 96 fits"):
        fit(needs, 100, 2, 1100 + 2559)


def test_the_sentence_has_the_figures() -> None:
    needs = Needs("llama", 4_900_000_000, 131_072, 200_000_000, 131_072, 32)
    with pytest.raises(DoesNotFit) as caught:
        fit(needs, 131_072, 1, 12_000_000_000)
    assert str(caught.value) == (
        "llama with a context of 131,072 tokens needs 22.28 GB of memory (4.90 GB for weights, 17.18 GB for "
        "keys and values), and 12.00 GB are available; a context of 52,640 fits"
    )


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8,000 kB available, and no control groups yet."""
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    (tmp_path / "own").write_text("")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "fs")
    return tmp_path


def group(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_available_memory_is_the_machines(system: Path) -> None:
    assert available_bytes() == 8000 * 1024


def test_the_tightest_control_group_counts(system: Path) -> None:
    (system / "own").write_text("0::/a/b\n")
    group(
        system / "fs/a", {"memory.max": "5000000\n", "memory.current": "1000000\n", "memory.stat": "anon 9\n"}
    )
    group(system / "fs/a/b", {"memory.max": "max\n"})
    assert available_bytes() == 4_000_000
    # pages of files can be dropped
    (system / "fs/a/memory.stat").write_text("anon 9\ninactive_file 300000\nactive_file 200000\n")
    assert available_bytes() == 4_500_000


def test_control_groups_of_the_first_version(system: Path) -> None:
    (system / "own").write_text("5:cpu,cpuacct:/x\n4:memory:/x\n")
    files = {"memory.limit_in_bytes": "3000000\n", "memory.usage_in_bytes": "1\n", "memory.stat": ""}
    group(system / "fs/memory/x", files)
    group(system / "fs/memory/y", {**files, "memory.limit_in_bytes": "5\n"})
    assert available_bytes() == 2_999_999


def test_no_tables_at_all(system: Path) -> None:
    (system / "meminfo").unlink()
    (system / "own").unlink()
    found = available_bytes()
    assert found is not None
    assert found > 10_000_000  # all of the machine's


def test_layers_with_chunked_attention_keep_part_of_the_cache() -> None:
    assert LOCAL.cache_bytes(640) == 640 * 40
    assert LOCAL.cache_bytes(1280) == 1280 * 10 + 640 * 30
    assert LOCAL.cache_bytes(64_000) == 64_000 * 10 + 16_000 * 30


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("n_bytes", [0, 1, 2000, 25_600, 26_000, 99_999, 3_000_000])
def test_the_longest_caches_that_fit(n_bytes: int, batch: int) -> None:
    n = LOCAL.tokens_in(n_bytes, batch)
    assert LOCAL.cache_bytes(n * batch) <= n_bytes
    assert LOCAL.cache_bytes((n + 32) * batch) > n_bytes
