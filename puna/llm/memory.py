"""How much memory there is, and how long a context fits into it: arithmetic, before anything is allocated.

What a model takes: its weights, the keys and values of every position of the cache (memory that is taken as
the cache fills, but has to be there by then), and the arrays that a step works in.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from puna.core import DoesNotFit
from puna.model.sizes import local_positions

_MEMINFO = Path("/proc/meminfo")
_OWN_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")

_DEFAULT_BATCH = 8
_SHARE = 0.75  # of the free memory that a cache may take whose size nobody asked for
_LEAST_CONTEXT = 512  # less than this is not offered unasked


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that a model takes, and the tokens it was made for."""

    name: str
    weight_bytes: int
    token_bytes: int  # keys and values of one position, all layers that keep every position
    workspace_bytes: int  # what a step works in, at most
    context: int  # tokens
    block_tokens: int  # the cache is handed out in blocks of so many
    local_token_bytes: int = (
        0  # keys and values of one position, layers that keep some: sizes.local_positions
    )
    local_window: int = 0
    step_tokens: int = 0

    def cache_bytes(self, n_tokens: int) -> int:
        """Bytes of a cache of n_tokens, all sequences together."""
        n_local = local_positions(self.local_window, n_tokens, self.step_tokens)
        return n_tokens * self.token_bytes + n_local * self.local_token_bytes

    def total(self, n_tokens: int) -> int:
        """Bytes with n_tokens in the cache."""
        return self.weight_bytes + self.workspace_bytes + self.cache_bytes(n_tokens)

    def tokens_in(self, n_bytes: int, batch: int) -> int:
        """Tokens of each of `batch` sequences whose caches take at most n_bytes, in whole blocks."""
        most = max(0, n_bytes) // (self.token_bytes * self.block_tokens * batch)
        found = bisect_right(
            range(1, most + 1), n_bytes, key=lambda n: self.cache_bytes(n * self.block_tokens * batch)
        )
        return found * self.block_tokens

    def padded(self, n_tokens: int) -> int:
        """Tokens in whole blocks."""
        return -(-n_tokens // self.block_tokens) * self.block_tokens


@dataclass(frozen=True, slots=True)
class Room:
    """What a loaded model has room for."""

    context: int  # tokens of one sequence
    cache_tokens: int  # of all sequences together


def fit(needs: Needs, context: int | None, batch: int | None, available: int | None) -> Room:
    """Decide what nobody asked for, and refuse what was asked for and does not fit.

    `available` is in bytes; None where the system does not tell, and everything is believed to fit. Raises
    DoesNotFit, saying what would fit.
    """
    wanted = needs.context if context is None else context
    if available is None:
        return Room(wanted, needs.padded(wanted) * (batch or _DEFAULT_BATCH))
    if context is None:
        unasked = _tokens(needs, available, _SHARE, batch or 1)
        wanted = min(wanted, max(unasked, min(wanted, _LEAST_CONTEXT)))
    n_tokens = needs.padded(wanted) * (batch or 1)
    if needs.total(n_tokens) > available:
        raise DoesNotFit(_refusal(needs, wanted, batch or 1, available))
    if batch is None:
        most = needs.padded(wanted) * _DEFAULT_BATCH
        n_tokens = max(n_tokens, min(most, _tokens(needs, available, _SHARE, 1)))
    return Room(wanted, n_tokens)


def extremes(needs: Needs, context: int | None, batch: int | None) -> tuple[int, int]:
    """Bytes that `fit` is content with, and those that it takes at most."""
    least = min(needs.context, _LEAST_CONTEXT) if context is None else context
    most = needs.context if context is None else context
    return (
        needs.total(needs.padded(least) * (batch or 1)),
        needs.total(needs.padded(most) * (batch or _DEFAULT_BATCH)),
    )


def _tokens(needs: Needs, available: int, share: float, batch: int) -> int:
    """Tokens of each of `batch` sequences whose caches take `share` of what the rest of the model leaves."""
    return needs.tokens_in(int((available - needs.total(0)) * share), batch)


def _refusal(needs: Needs, context: int, batch: int, available: int) -> str:
    fits = _tokens(needs, available, 1, batch)
    n_tokens = needs.padded(context) * batch
    times = f" for each of {batch} sequences" if batch > 1 else ""
    message = (
        f"{needs.name} with a context of {context:,} tokens{times} needs {readable(needs.total(n_tokens))} "
        f"of memory ({readable(needs.weight_bytes)} for weights, {readable(needs.cache_bytes(n_tokens))} for "
        f"keys and values), and {readable(available)} are available"
    )
    if fits < 1:
        return f"{message}; use a smaller model or a smaller quantization of it"
    return f"{message}; a context of {fits:,} fits"


def readable(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e7 else f"{n_bytes / 1e6:.2f} MB"


def available_bytes() -> int | None:
    """Memory that can be taken without swapping: of the machine, and of each control group around us.

    Without Linux's tables, all of the machine's memory; None where not even that is known.
    """
    found = [*_of_machine(), *_of_cgroups()]
    return max(0, min(found)) if found else None


def _of_machine() -> Iterator[int]:
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024
                return
    except OSError:
        pass
    if "SC_PHYS_PAGES" in os.sysconf_names:
        yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _of_cgroups() -> Iterator[int]:
    """What is left of the limit of every control group (version 1 or 2) that we are in."""
    try:
        lines = _OWN_CGROUP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = _CGROUPS / controllers
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(root):
                yield from _left_in(group, "memory.limit_in_bytes" if controllers else "memory.max")


def _left_in(group: Path, limit_name: str) -> Iterator[int]:
    """Limit less use; pages of files do not count as used where they can be dropped."""
    usage_name = "memory.current" if limit_name == "memory.max" else "memory.usage_in_bytes"
    try:
        limit = (group / limit_name).read_text().strip()
        if limit == "max":
            return
        used = int((group / usage_name).read_text())
        rows = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return  # no such table: the group has no limit of its own, or shows it to nobody
    yield int(limit) - used + int(rows.get("inactive_file", 0)) + int(rows.get("active_file", 0))
