"""GGUF models split into several files, as gguf-split of llama.cpp makes them.

The parts are named NAME-00001-of-00003.gguf; each says in split.no (from 0), split.count and
split.tensors.count where it belongs. The first part carries the metadata of the model.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from puna.core import BadFile
from puna.weights.files.gguf import GgufFile

_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def open_parts(path: str | os.PathLike[str]) -> list[GgufFile]:
    """Open a GGUF file and, where it is one part of a split model, all of the others, in order.

    Raises BadFile naming the parts that are missing or do not belong together.
    """
    path = Path(path)
    file = GgufFile.open(path)
    count = _number(file, "split.count") if "split.count" in file.metadata else 1
    if count <= 1:
        return [file]
    parts = [GgufFile.open(part) for part in _part_paths(path, count)]
    for i, part in enumerate(parts):
        found = (_number(part, "split.no"), _number(part, "split.count"))
        if found != (i, count):
            raise BadFile(
                f"{part.path}: expected split.no and split.count of {i} and {count} by its name, found "
                f"{found[0]} and {found[1]}; bring the parts of one model together again"
            )
    _check_tensors(parts)
    return parts


def _number(file: GgufFile, key: str) -> int:
    value = file.metadata.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadFile(
            f"{file.path}: {key} must be a whole number in every part of a split model, found {value!r}"
        )
    return value


def _part_paths(path: Path, count: int) -> list[Path]:
    match = _PART_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise BadFile(
            f"{path}: is one part of a model split into {count:,} files, which are named like "
            f"NAME-00001-of-{count:05}.gguf; give the parts their names back"
        )
    paths = [path.with_name(f"{match['stem']}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise BadFile(
            f"{path}: the model is split into {count} files, and {', '.join(missing[:3])}{more} cannot be "
            "found beside this one; get the missing parts too"
        )
    return paths


def _check_tensors(parts: list[GgufFile]) -> None:
    expected = _number(parts[0], "split.tensors.count")
    found = sum(len(part.tensors) for part in parts)
    if found != expected:
        raise BadFile(
            f"{parts[0].path}: expected {expected:,} tensors in all parts together, found {found:,}"
        )
    owner: dict[str, GgufFile] = {}
    for part in parts:
        for name in part.tensors:
            if name in owner:
                raise BadFile(f"{part.path}: tensor {name!r} is also in {owner[name].path.name}")
            owner[name] = part
