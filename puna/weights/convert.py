"""From one format of checkpoints to another, tensor by tensor.

The output grows in a folder beside its place, DESTINATION.partial, with a journal of what is written and
synced; the same conversion, begun again after a kill or a full disk, goes on from there. It takes its name in
one rename, once every tensor has been read back through the format's own reader and compared to the source.

Memory: one tensor, with what making it takes (a part of it, or its permuted copy); pages of mapped files are
given back after each. Tokenizers are the text side's business: they come as metadata and as small files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NoReturn
from zlib import crc32

import numpy as np

from puna.core import BadInput, DiskFull, WorkFailed
from puna.weights.blocks.tensor import RawTensor
from puna.weights.disk import disk_errors, free_bytes, fsync_folder, locked, write_atomically
from puna.weights.files.layout import Layout, Slice, write_frame, write_piece
from puna.weights.folder import Format
from puna.weights.load import open_checkpoint
from puna.weights.pull.fetch import Progress
from puna.weights.targets import Target, check_finite

_JOURNAL = "puna-convert.json"
_LOCK = "puna-convert.lock"
_SYNC_BYTES = 1 << 28  # written between two entries of the journal
_COMPARE_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Converted:
    path: Path
    format: Format
    files: tuple[str, ...]  # written, by name
    n_bytes: int  # of all files
    n_tensors: int
    resumed: int  # tensors that an earlier run had written
    verified: bool


@dataclass(slots=True)
class _Job:
    """One conversion under way."""

    target: Target
    work: Path
    progress: Progress
    crcs: dict[str, int] = field(default_factory=dict)  # by file and number of the piece: what is written
    done: int = 0  # sources written and synced

    @property
    def layouts(self) -> Sequence[Layout]:
        return self.target.layouts


def _silent(what: str, done: int, total: int | None) -> None:
    """The Progress of those who do not care."""


def convert(
    target: Target, destination: Path, *, verify: bool = True, progress: Progress = _silent
) -> Converted:
    """Write `target` (of targets.plan) to `destination`: a file for GGUF, else a folder.

    Raises BadInput (BadFile for the source's own faults, values that are not finite among them) and leaves
    nothing behind; DiskFull, OSError and an interruption leave DESTINATION.partial to be continued by the
    same call. Raises WorkFailed where the output does not read back as the source, and deletes it.
    """
    beside = [layout.file_name for layout in target.layouts[1:]] if target.format == "gguf" else []
    for path in (destination, *(destination.with_name(name) for name in beside)):
        if path.exists() or path.is_symlink():
            raise BadInput(f"{path} exists already; remove it, or choose another name")
    if not destination.absolute().parent.is_dir():
        raise BadInput(f"there is no folder {destination.absolute().parent} to write to; make it first")
    work = destination.with_name(destination.name + ".partial")
    job = _Job(target, work, progress)
    with disk_errors(destination.absolute().parent, target.n_bytes):
        _claim(work)
        with locked(work / _LOCK, lambda: _busy(destination)):
            try:
                resumed = _resume(job)
                _write(job)
                if verify:
                    _verify(job)
            except (BadInput, WorkFailed) as error:
                if not isinstance(error, DiskFull):
                    shutil.rmtree(work)
                raise
            _publish(job, destination)
    names = (*(layout.file_name for layout in job.layouts), *target.files)
    return Converted(
        destination, target.format, names, target.n_bytes, len(target.sources), resumed, verified=verify
    )


def _busy(destination: Path) -> NoReturn:
    raise BadInput(f"another process is writing {destination}; wait for it, or choose another name")


def _claim(work: Path) -> None:
    """Take the folder to work in: new, or one that an earlier run has left."""
    if work.exists() and not (work / _LOCK).is_file():
        raise BadInput(f"{work} is in the way and is not an unfinished conversion; move it")
    work.mkdir(exist_ok=True)


def _resume(job: _Job) -> int:
    """Take over what an earlier run of the same conversion has written -> the number of tensors."""
    try:
        journal = json.loads((job.work / _JOURNAL).read_text(encoding="utf-8"))
        same = journal["conversion"] == _fingerprint(job.target)
        crcs, done = dict(journal["crcs"]), int(journal["done"])
    except (OSError, ValueError, TypeError, KeyError):
        same, crcs, done = False, {}, 0
    sizes = [(job.work / layout.file_name, layout.size) for layout in job.layouts]
    if same and all(path.is_file() and path.stat().st_size == size for path, size in sizes):
        job.crcs, job.done = crcs, done
        return done
    for path in job.work.iterdir():
        if path.name != _LOCK:
            path.unlink()
    free = free_bytes(job.work)
    if free < job.target.n_bytes:
        raise DiskFull(
            f"the output needs {job.target.n_bytes:,} bytes and the disk of {job.work.parent} has {free:,} "
            "free; free some space, or write to another disk"
        )
    return 0


def _fingerprint(target: Target) -> str:
    """Equal for equal conversions of unchanged files."""
    paths = target.checkpoint.paths
    stats = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    layouts = [
        (
            layout.file_name,
            layout.size,
            [(at, piece.name, piece.kind, piece.shape) for at, piece in layout.pieces],
        )
        for layout in target.layouts
    ]
    heads = [
        [(at, raw.hex()) for at, raw in layout.frame([0] * len(layout.pieces))] for layout in target.layouts
    ]
    files = {name: hashlib.sha256(raw).hexdigest() for name, raw in target.files.items()}
    return hashlib.sha256(json.dumps([stats, layouts, heads, files], default=str).encode()).hexdigest()


def _write(job: _Job) -> None:
    with ExitStack() as stack:
        files: dict[str, IO[bytes]] = {}
        for layout in job.layouts:
            path = job.work / layout.file_name
            mode = "r+b" if job.done and path.exists() else "w+b"
            files[layout.file_name] = stack.enter_context(path.open(mode))
            files[layout.file_name].truncate(layout.size)
        _write_tensors(job, files)
        for layout in job.layouts:
            crcs = [job.crcs[f"{layout.file_name}:{i}"] for i in range(len(layout.pieces))]
            write_frame(files[layout.file_name], layout, crcs)
        _sync(files.values())
    for name, raw in job.target.files.items():
        (job.work / name).write_bytes(raw)


def _write_tensors(job: _Job, files: Mapping[str, IO[bytes]]) -> None:
    conversion: str | None = None
    pieces = _pieces_of(job.layouts)
    total = sum(source.n_bytes for source in job.target.sources)
    n_written = sum(source.n_bytes for source in job.target.sources[: job.done])
    n_unsynced = 0
    job.progress("converting", n_written, total)
    for i, source in enumerate(job.target.sources):
        if i < job.done:
            continue
        data = source.data()
        check_finite(source.name, source.kind, data)
        for file_name, number, offset, piece in pieces[source.name]:
            job.crcs[f"{file_name}:{number}"] = write_piece(files[file_name], offset, piece, data)
        del data
        source.release()
        n_written += source.n_bytes
        n_unsynced += source.n_bytes
        job.progress("converting", n_written, total)
        if n_unsynced >= _SYNC_BYTES or i + 1 == len(job.target.sources):
            _sync(files.values())
            conversion = conversion or _fingerprint(job.target)
            journal = {"conversion": conversion, "done": i + 1, "crcs": job.crcs}
            write_atomically(job.work / _JOURNAL, json.dumps(journal))
            n_unsynced = 0


def _pieces_of(layouts: Sequence[Layout]) -> dict[str, list[tuple[str, int, int, Slice]]]:
    """For each source, where its bytes go: file, number of the piece in it, place, piece."""
    found: dict[str, list[tuple[str, int, int, Slice]]] = {}
    for layout in layouts:
        for number, (offset, piece) in enumerate(layout.pieces):
            found.setdefault(piece.source.name, []).append((layout.file_name, number, offset, piece))
    return found


def _sync(files: Iterable[IO[bytes]]) -> None:
    for file in files:
        file.flush()
        os.fsync(file.fileno())


def _verify(job: _Job) -> None:
    """Read the output through its own reader; WorkFailed unless it holds what was to be written."""
    written = job.work / job.layouts[0].file_name if job.target.format == "gguf" else job.work
    total = sum(tensor.n_bytes for tensor in job.target.tensors)
    done = 0
    job.progress("verifying", 0, total)
    if job.target.is_costly:
        _verify_checksums(job)
    try:
        with open_checkpoint(written) as output:
            difference = job.target.difference(output.config)
            if difference is not None:
                raise WorkFailed(_mismatch(job, f"its {difference} reads back differently"))
            for tensor in job.target.tensors:
                found = output.tensors.get(tensor.name)
                if found is None or not _equal(tensor, found, job.target.is_costly):
                    raise WorkFailed(_mismatch(job, f"tensor {tensor.name!r} reads back differently"))
                done += tensor.n_bytes
                job.progress("verifying", done, total)
    except BadInput as error:
        raise WorkFailed(_mismatch(job, f"it cannot be read back ({error})")) from error


def _mismatch(job: _Job, what: str) -> str:
    return f"the converted checkpoint is not what was to be written, {what}; is the disk good? it was deleted"


def _equal(wanted: RawTensor, found: RawTensor, is_costly: bool) -> bool:
    """Whether they are the same; of what is costly to make, only kind and shape: see _verify_checksums."""
    if (wanted.kind, wanted.shape) != (found.kind, found.shape):
        return False
    if is_costly:
        return True
    a, b = wanted.data(), found.data()
    same = all(
        np.array_equal(a[at : at + _COMPARE_BYTES], b[at : at + _COMPARE_BYTES])
        for at in range(0, a.size, _COMPARE_BYTES)
    )
    del a, b
    wanted.release()
    found.release()
    return same


def _verify_checksums(job: _Job) -> None:
    """Whether the files hold the bytes that were written to them."""
    for layout in job.layouts:
        with (job.work / layout.file_name).open("rb") as file:
            for number, (offset, piece) in enumerate(layout.pieces):
                file.seek(offset)
                crc, left = 0, piece.n_bytes
                while left:
                    part = file.read(min(left, _COMPARE_BYTES))
                    if not part:
                        break
                    crc, left = crc32(part, crc), left - len(part)
                if left or crc != job.crcs[f"{layout.file_name}:{number}"]:
                    raise WorkFailed(_mismatch(job, f"tensor {piece.name!r} reads back differently"))


def _publish(job: _Job, destination: Path) -> None:
    """Give the complete output its name."""
    (job.work / _JOURNAL).unlink()
    if job.target.format == "gguf":
        text, *others = job.layouts
        for layout in others:  # the text file comes last: where it is, the model is complete
            (job.work / layout.file_name).rename(destination.with_name(layout.file_name))
        (job.work / text.file_name).rename(destination)
        shutil.rmtree(job.work)
    else:
        (job.work / _LOCK).unlink()
        job.work.rename(destination)
    fsync_folder(destination.absolute().parent)
