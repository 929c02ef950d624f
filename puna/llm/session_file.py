"""Files of sessions: written from the cache of an engine, and put back into it.

A file holds the keys and values of whole cache blocks, the token ids that they belong to, and, where a
conversation was saved, its messages. It is a safetensors file:

    __metadata__   puna_session "1"; model, its name; weights, its fingerprint; cache, the executor's format;
                   messages, JSON or ""; sha256 of the whole file, with 64 zeros in the place of itself
    tokens         I32 [tokens], a whole number of blocks
    blocks         U8 [blocks, bytes of a block]
    local_blocks   U8 [blocks, bytes of one]: of layers that see a part only, the last of what they see

What is put back are the very bytes that were computed, so answers are the same to the bit: that is why
another model, another type of cache, and kernels of another processor are refused. Whoever makes such a file
decides what the model has read; take it from nobody whom you would not take a model from.
"""

from __future__ import annotations

import json
import os
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from puna.core import BadFile, BadValue, DiskFull, DoesNotFit, PunaError, WorkFailed
from puna.llm.prompts import Message
from puna.llm.sessions import Origin, Session
from puna.weights.files.safetensors import SafetensorsFile, TensorInfo

if TYPE_CHECKING:
    from puna.engine.blocks import Held
    from puna.engine.bridge import EngineThread
    from puna.engine.engine import Engine

_VERSION = "1"
_PIECE = 32 << 20  # bytes that are moved between two steps
_NO_SUM = "0" * 64
_FIELDS = {"puna_session", "model", "weights", "cache", "messages", "sha256"}


def save(
    origin: Origin, path: Path, tokens: array[int], messages: Sequence[Message], max_bytes: int | None
) -> Session:
    """Write the cached beginning of `tokens` to a file, which is replaced as a whole.

    Raises Unsupported for a backend without such blocks, WorkFailed where not all whole blocks of `tokens`
    are cached, BadValue for more than `max_bytes`, DiskFull, or WorkFailed for a place that nothing can be
    written to.
    """
    engine = origin.engine
    size, store = engine.run(lambda engine: (engine.transfer.block_tokens, engine.transfer.store))
    with _held(engine, lambda engine: engine.transfer.hold_prefix(tokens, origin.root)) as held:
        assert held is not None
        n_blocks, n_local = len(held.blocks), len(held.local_blocks)
        if n_blocks < len(tokens) // size:
            raise WorkFailed(
                f"only {n_blocks * size} of {len(tokens)} tokens are still in the cache, others needed the "
                "room; try again when there are fewer requests, or load the model with a larger batch"
            )
        kept = tokens[: n_blocks * size]
        tables = [(False, n_blocks, store.block_bytes), (True, n_local, store.local_block_bytes)]
        header = _header(origin, store.cache_format, kept, messages, tables)
        n_bytes = len(header) + 4 * len(kept) + sum(n * each for _, n, each in tables)
        _check_size(n_bytes, max_bytes, f"the session of {len(kept)} tokens")
        with _written(path, n_bytes) as file:
            digest = sha256(header)
            file.write(header)
            for data in (kept.tobytes(), *_pieces(engine, held, tables)):
                digest.update(data)
                file.write(data)
            file.seek(header.index(_NO_SUM.encode()))
            file.write(digest.hexdigest().encode())
    return Session(path, origin.model, tuple(kept), tuple(messages), n_bytes)


def load(origin: Origin, path: Path, max_bytes: int | None) -> Session:
    """Put what a file holds into the cache, and say what that was.

    Raises BadFile for what is no session of this model and cache, or is truncated or altered; DoesNotFit
    where too few blocks are free; Unsupported for a backend without such blocks.
    """
    engine = origin.engine
    size, store = engine.run(lambda engine: (engine.transfer.block_tokens, engine.transfer.store))
    with _opened(path) as (header, file, infos, metadata):
        n_bytes = os.fstat(file.fileno()).st_size
        _check_size(n_bytes, max_bytes, str(path))
        _check_origin(origin, store.cache_format, metadata)
        n_blocks = infos["tokens"].shape[0] // size if infos["tokens"].shape else 0
        n_local = engine.run(lambda engine: engine.transfer.n_local(n_blocks))
        tables = [(False, n_blocks, store.block_bytes), (True, n_local, store.local_block_bytes)]
        _check_shapes(infos, n_blocks * size, tables)
        with _held(engine, lambda engine: engine.transfer.hold_free(n_blocks)) as held:
            if held is None:
                raise DoesNotFit(
                    f"the session has {n_blocks * size} tokens, and the cache has no room for them beside "
                    "running requests; try again later, or load the model with a larger context or batch"
                )
            digest = sha256(header.replace(metadata["sha256"].encode(), _NO_SUM.encode(), 1))
            raw = _take(file, 4 * n_blocks * size, digest.update)
            _fill(engine, held, tables, lambda n: _take(file, n, digest.update))
            if digest.hexdigest() != metadata["sha256"]:
                raise BadFile("its bytes do not give the checksum in it; it is damaged or altered, save anew")
            tokens = array("i", struct.unpack(f"<{n_blocks * size}i", raw))
            messages = _messages(metadata["messages"])
            engine.run(lambda engine: engine.transfer.offer(tokens, held, origin.root))
    return Session(path, origin.model, tuple(tokens), messages, n_bytes)


def _messages(said: str) -> tuple[Message, ...]:
    """Raises BadFile."""
    try:
        found = json.loads(said) if said else []
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(
        isinstance(message, dict) and isinstance(message.get("role"), str) for message in found
    ):
        raise BadFile("its messages are no list of messages; it is damaged, save it again")
    return tuple(found)


@contextmanager
def _held(engine: EngineThread, hold: Callable[[Engine], Held | None]) -> Iterator[Held | None]:
    held = engine.run(hold)
    try:
        yield held
    finally:
        if held is not None:
            with suppress(PunaError):  # a closed engine holds nothing
                engine.run(lambda engine: engine.transfer.let_go(held))


def _header(
    origin: Origin,
    cache: str,
    tokens: array[int],
    messages: Sequence[Message],
    tables: Sequence[tuple[bool, int, int]],
) -> bytes:
    """The file up to its data, with zeros for the checksum."""
    said = json.dumps(list(messages), ensure_ascii=True) if messages else ""
    metadata = {
        "puna_session": _VERSION,
        "sha256": _NO_SUM,
        "model": origin.model,
        "weights": origin.weights,
        "cache": cache,
        "messages": said,
    }
    end = 4 * len(tokens)
    header: dict[str, Any] = {"__metadata__": metadata}
    header["tokens"] = {"dtype": "I32", "shape": [len(tokens)], "data_offsets": [0, end]}
    for is_local, n, each in tables:
        if n:
            place = [end, end + n * each]
            header[_name(is_local)] = {"dtype": "U8", "shape": [n, each], "data_offsets": place}
            end = place[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _name(is_local: bool) -> str:
    return "local_blocks" if is_local else "blocks"


def _pieces(engine: EngineThread, held: Held, tables: Sequence[tuple[bool, int, int]]) -> Iterator[bytes]:
    """All blocks, in pieces."""
    for is_local, n, each in tables:
        step = max(1, _PIECE // max(1, each))
        for first in range(0, n, step):
            end = min(n, first + step)
            yield engine.run(
                lambda engine, first=first, end=end, local=is_local: (  # type: ignore[misc]
                    engine.transfer.read(held, first, end, local=local).tobytes()
                )
            )


def _fill(
    engine: EngineThread, held: Held, tables: Sequence[tuple[bool, int, int]], take: Callable[[int], bytes]
) -> None:
    """Write all blocks, in pieces of what `take` gives."""
    for is_local, n, each in tables:
        step = max(1, _PIECE // max(1, each))
        for first in range(0, n, step):
            n_here = min(n, first + step) - first
            data = np.frombuffer(take(n_here * each), np.uint8).reshape(n_here, each)
            engine.run(
                lambda engine, first=first, data=data, local=is_local: (  # type: ignore[misc]
                    engine.transfer.write(held, first, data, local=local)
                )
            )


def _take(file: IO[bytes], n: int, see: Callable[[bytes], None]) -> bytes:
    data = file.read(n)
    if len(data) != n:
        raise BadFile("it is shorter than its header says; it is truncated, save it again")
    see(data)
    return data


@contextmanager
def _opened(path: Path) -> Iterator[tuple[bytes, IO[bytes], dict[str, TensorInfo], dict[str, str]]]:
    """The header, the file at its data, what the header says of tensors, and its metadata."""
    with SafetensorsFile.open(path) as found:
        infos, metadata = dict(found.tensors), dict(found.metadata)
    try:
        if metadata.get("puna_session") != _VERSION or set(metadata) != _FIELDS or "tokens" not in infos:
            raise BadFile(f"it is no session that this version saves ({_VERSION}); choose another file")
        with path.open("rb") as file:
            header = file.read(infos["tokens"].offset)
            yield header, file, infos, metadata
    except BadFile as error:
        raise BadFile(f"{path}: {error}") from None
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror or error}") from None


def _check_origin(origin: Origin, cache: str, metadata: dict[str, str]) -> None:
    if metadata["weights"] != origin.weights:
        raise BadFile(
            f"it was saved with other weights ({metadata['model']:.80}) than those of {origin.model}; load "
            "that model, or save the session again with this one"
        )
    if metadata["cache"] != cache:
        raise BadFile(
            f"its cache is {metadata['cache']:.200}, and that of the loaded model {cache}; load the model as "
            "it was (cache type, context, processor), or save the session again"
        )


def _check_shapes(
    infos: dict[str, TensorInfo], n_tokens: int, tables: Sequence[tuple[bool, int, int]]
) -> None:
    expected: dict[str, tuple[str, tuple[int, ...]]] = {"tokens": ("I32", (n_tokens,))}
    expected |= {_name(is_local): ("U8", (n, each)) for is_local, n, each in tables if n}
    found = {name: (info.dtype, info.shape) for name, info in infos.items()}
    offsets = [infos[name].offset for name in expected if name in infos]
    if found != expected or offsets != sorted(offsets):
        raise BadFile(f"it should hold {expected}, found {found!r:.200}; it is damaged, save it again")


def _check_size(n_bytes: int, max_bytes: int | None, what: str) -> None:
    if max_bytes is not None and n_bytes > max_bytes:
        raise BadValue(
            f"a session may have {max_bytes:,} bytes, {what} has {n_bytes:,}; save a shorter one, or raise "
            "the limit"
        )


@contextmanager
def _written(path: Path, n_bytes: int) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` once all is in it."""
    from puna.weights.disk import free_bytes, fsync_folder

    temporary = path.with_name(f".puna-{token_hex(8)}")
    try:
        if path.is_dir():
            raise WorkFailed(f"{path} is a folder; choose a file")
        free = free_bytes(path.parent)
        if free < n_bytes:
            raise DiskFull(f"{path} needs {n_bytes:,} bytes, and {free:,} are free; make room")
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_folder(path.parent)
    except OSError as error:
        raise WorkFailed(
            f"{path} cannot be written: {error.strerror or error}; choose another file"
        ) from None
