"""Which replica has the beginning of a prompt in its cache, as far as can be told without a tokenizer.

A prompt is cut into chunks of characters, and each chunk is named by a hash of itself and all before it: two
prompts share a name only where they share everything up to there. Who was sent a chunk has it, until so many
others came after it that the table forgets; a replica may have dropped it sooner, which costs time and never
an answer.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Generic, TypeVar

CHUNK = 128  # characters: some 30 tokens, one or two blocks of the engine's cache
_MOST_CHUNKS = 8192  # of one prompt: a million characters
_LONG = 4096  # characters of a picture in a request; its digest stands for it

# fields of any API that stand before the conversation, in the order in which prompts have them
_BEFORE = ("model", "tools", "system", "instructions")
_PROMPTS = ("messages", "prompt", "input", "content")

Id = TypeVar("Id")


def prompt_keys(body: bytes) -> tuple[bytes, ...] | None:
    """The names of a request's chunks, from the first on; None for a body without a prompt."""
    try:
        found = json.loads(body)
        if not isinstance(found, dict):
            return None
        prompt = next((found[name] for name in _PROMPTS if found.get(name)), None)
        if prompt is None:
            return None
        turns = prompt if isinstance(prompt, list) else [prompt]
        parts = [found[name] for name in _BEFORE if found.get(name)]
        text = "".join(json.dumps(_short(part), ensure_ascii=False) for part in [*parts, *turns])
    except (ValueError, RecursionError):
        return None  # whoever answers it says what is wrong
    return chunk_keys(text)


def chunk_keys(text: str) -> tuple[bytes, ...]:
    """Names of the whole chunks of a text."""
    keys: list[bytes] = []
    key = b""
    for end in range(CHUNK, min(len(text), _MOST_CHUNKS * CHUNK) + 1, CHUNK):
        chunk = text[end - CHUNK : end].encode("utf-8", "surrogatepass")
        key = blake2b(key + chunk, digest_size=8).digest()
        keys.append(key)
    return tuple(keys)


def _short(value: Any) -> Any:
    """The same with digests in place of the data of pictures: a picture is worth a chunk and more."""
    if isinstance(value, str):
        if len(value) < _LONG or " " in value[:_LONG]:
            return value
        return blake2b(value.encode("utf-8", "surrogatepass"), digest_size=64).hexdigest() * 2
    if isinstance(value, list):
        return [_short(item) for item in value]
    if isinstance(value, dict):
        return {name: _short(item) for name, item in value.items()}
    return value


class PrefixTable(Generic[Id]):
    """Chunks and the replicas that were sent them; the oldest of `most` are forgotten first."""

    def __init__(self, most: int = 200_000) -> None:
        self._most = most
        self._holders: OrderedDict[bytes, tuple[Id, ...]] = OrderedDict()
        self._sent: dict[Id, int] = {}  # prompts of a replica, and chunks that it did not have

    def order(self, keys: Sequence[bytes], loads: Mapping[Id, int], slack: int) -> list[Id]:
        """The replicas of `loads` (requests that each has now), the best for a prompt first.

        That is whoever has most of it, unless it has over `slack` requests more than the one that has the
        fewest; then the one with the fewest requests, and of these the one that was sent the least.
        """
        held = self._held(keys, loads)
        most = min(loads.values(), default=0) + slack
        return sorted(
            loads,
            key=lambda id: (
                -held.get(id, 0) if loads[id] <= most else 0,
                loads[id],
                self._sent.get(id, 0),
            ),
        )

    def add(self, keys: Iterable[bytes], replica: Id) -> None:
        """A prompt was sent to a replica."""
        n_new = 0
        for key in keys:
            holders = self._holders.get(key, ())
            if replica not in holders:
                self._holders[key] = (*holders, replica)
                n_new += 1
            self._holders.move_to_end(key)
        self._sent[replica] = self._sent.get(replica, 0) + n_new + 1
        while len(self._holders) > self._most:
            self._holders.popitem(last=False)

    def keep(self, replicas: Iterable[Id]) -> None:
        """Forget all other replicas: they are gone, and so are their caches."""
        known = set(replicas)
        if known >= self._sent.keys():
            return
        self._sent = {id: n for id, n in self._sent.items() if id in known}
        for key, holders in list(self._holders.items()):
            left = tuple(id for id in holders if id in known)
            if left:
                self._holders[key] = left
            else:
                del self._holders[key]

    def _held(self, keys: Sequence[bytes], replicas: Iterable[Id]) -> dict[Id, int]:
        """How many chunks of a prompt each replica has, counted from its beginning without a gap."""
        held: dict[Id, int] = {}
        open = set(replicas)
        for n, key in enumerate(keys, 1):
            open &= set(self._holders.get(key, ()))
            if not open:
                break
            held.update(dict.fromkeys(open, n))
        return held
