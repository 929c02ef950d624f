"""Which checkpoint a path means: a GGUF file, Hugging Face's folder, or Meta's. Only names are looked at."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from puna.core import BadFile, BadInput, UnknownModel, Unsupported, closest
from puna.weights.pull.sources import local_files

Format = Literal["gguf", "hf", "meta"]
FORMATS: Sequence[Format] = ("gguf", "hf", "meta")

INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"consolidated\.(\d{2})\.pth")


@dataclass(frozen=True, slots=True)
class Located:
    """`path` is the GGUF file (one part of a split model), else the folder."""

    format: Format
    path: Path


def locate(path: str | os.PathLike[str]) -> Located:
    """The checkpoint of a file or folder; a file of a folder's checkpoint stands for the folder.

    Raises UnknownModel where there is nothing, Unsupported for what is no checkpoint, BadInput for a folder
    that holds more than one, BadFile for a split set with missing parts.
    """
    path = Path(path)
    if path.is_dir():
        return _in_folder(path)
    if not path.exists():
        local_files(path)  # names the closest file
        raise UnknownModel(f"there is no file or folder {path}")
    name = path.name
    if name == "params.json" or _SHARD.fullmatch(name):
        return Located("meta", path.parent)
    if name in ("config.json", INDEX) or name.endswith(".safetensors"):
        return Located("hf", path.parent)
    if name.endswith((".pth", ".pt", ".bin", ".ckpt")):
        raise Unsupported(
            f"{path} is not named like a file of a checkpoint that Puna reads: Meta's are "
            "consolidated.00.pth beside params.json, Hugging Face's *.safetensors beside config.json"
        )
    return Located("gguf", path)


def is_folder_checkpoint(path: Path) -> bool:
    """Whether `path` is a folder of Hugging Face's or Meta's layout, or both."""
    return path.is_dir() and bool(_formats(_names(path)) - {"gguf"})


def meta_shards(folder: Path) -> list[Path]:
    """consolidated.00.pth and those that follow; BadFile names the first that is missing."""
    names = {name for name in _names(folder) if _SHARD.fullmatch(name)}
    expected = [f"consolidated.{i:02d}.pth" for i in range(len(names))]
    for name in expected or ["consolidated.00.pth"]:
        if name not in names:
            found = f"{len(names)} others are there" if names else "there is none"
            raise BadFile(f"{name} is missing ({found}); get all files of the checkpoint into one folder")
    return [folder / name for name in expected]


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_file()}


def _formats(names: set[str]) -> set[Format]:
    found: set[Format] = set()
    if any(name.lower().endswith(".gguf") for name in names):
        found.add("gguf")
    if INDEX in names or any(name.endswith(".safetensors") for name in names):
        found.add("hf")
    if any(_SHARD.fullmatch(name) for name in names):
        found.add("meta")
    return found


def _in_folder(folder: Path) -> Located:
    names = _names(folder)
    formats = _formats(names)
    if len(formats) > 1:
        files = {"gguf": "the .gguf file", "hf": "config.json", "meta": "params.json"}
        ways = ", ".join(files[f] for f in FORMATS if f in formats)
        raise BadInput(
            f"{folder} holds checkpoints in {len(formats)} formats; name a file of the one you mean: {ways}"
        )
    if formats == {"gguf"}:
        return Located("gguf", local_files(folder)[0])
    for form in formats:
        description = "config.json" if form == "hf" else "params.json"
        if description not in names:
            raise BadFile(
                f"{folder} holds weights and no {description}, which says what they are"
                f"{closest(description, sorted(names))}; get it too"
            )
        return Located(form, folder)
    kinds = ", ".join(sorted({Path(name).suffix for name in names} - {""})) or "nothing"
    raise Unsupported(
        f"{folder} holds no checkpoint (found: {kinds}); Puna reads .gguf, config.json with .safetensors, "
        "and params.json with consolidated.00.pth"
    )
