"""Download model files from the Hugging Face hub, or what HF_ENDPOINT names, going on where it broke off.

huggingface_hub knows the endpoint, the token, the listing and the meaning of errors. The bytes are streamed
here rather than by its `hf_hub_download`, which since version 2 throws away what has arrived when the process
dies, and a model may be hours of download.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from puna.core import BadInput, DownloadFailed, UnknownModel
from puna.weights.disk import require_room
from puna.weights.pull.fetch import WITHOUT, Expected, Fetched, MaySee, Progress, Writer
from puna.weights.pull.folders import folder_files, needed_weights
from puna.weights.pull.sources import (
    HubSource,
    choose_mmproj,
    choose_model,
    is_gguf_model,
    is_mmproj,
    require_parts,
    split_set,
)

_PAUSES = (1, 2, 4, 8)  # seconds before each new attempt that follows one without progress


@dataclass(frozen=True, slots=True)
class _HubFile:
    name: str  # path in the repository
    size: int
    sha256: str | None  # of files in large-file storage, as models are
    id: str  # changes whenever the content does


def fetch_hub(source: HubSource, work: Path, may_see: MaySee | None, progress: Progress) -> list[Fetched]:
    """The model files of a repository at one commit, in `work`; a broken download is continued.

    The vision file of a GGUF model that may see comes last; without `may_see` there is none. A repository
    without GGUF files is a folder in Hugging Face's or Meta's layout, as is a folder in it that is named.
    """
    with _hub_errors(source):
        commit, files = _listing(source)
        where = f"hf:{source.repo}"
        folder = _folder_of(source, files)
        if folder is not None:
            return _fetch_folder(source, commit, folder, work, progress)
        named = split_set(source.file) if source.file else choose_model(files, where)
        wanted = require_parts(named, files, where)
        vision = _vision_file(files, wanted[0], where) if may_see is not None else []
        parts = [(files[name], work / f"{files[name].id}.part") for name in wanted + vision]
        present = sum(part.stat().st_size for _, part in parts if part.exists())
        require_room(work, sum(file.size for file, _ in parts) - present, str(source))
        fetched: list[Fetched] = []
        for file, part in parts:
            if file.name not in vision or (may_see is not None and may_see(fetched[0].path)):
                fetched.append(_download(source.repo, commit, file, part, progress))
        return fetched


def _vision_file(names: Iterable[str], model: str, where: str) -> list[str]:
    """The vision file nearest to a text file: in its folder, or in one around it, as of types in folders."""
    if is_mmproj(model):
        return []
    for folder in PurePosixPath(model).parents:
        inside = [name for name in names if PurePosixPath(name).parent == folder]
        vision = choose_mmproj(inside, model, where, WITHOUT)
        if vision is not None:
            return [vision]
    return []


def _folder_of(source: HubSource, files: Mapping[str, _HubFile]) -> dict[str, _HubFile] | None:
    """By their names in it, the files of the folder that a source means; None where it means GGUF files."""
    prefix = f"{source.folder}/" if source.folder else ""
    if source.folder in files or (not source.file and any(is_gguf_model(name) for name in files)):
        return None
    inside = {name.removeprefix(prefix): file for name, file in files.items() if name.startswith(prefix)}
    return {name: file for name, file in inside.items() if "/" not in name} or None


def _fetch_folder(
    source: HubSource, commit: str, folder: Mapping[str, _HubFile], work: Path, progress: Progress
) -> list[Fetched]:
    """The small files first: what they say decides whether and which weights come."""

    def part(name: str) -> Path:
        return work / f"{folder[name].id}-{name}.part"  # two small files may be equal

    def download(names: list[str]) -> list[Fetched]:
        present = sum(part(name).stat().st_size for name in names if part(name).exists())
        require_room(work, sum(folder[name].size for name in names) - present, str(source))
        return [_download(source.repo, commit, folder[n], part(n), progress, gguf=False) for n in names]

    small, weights = folder_files(folder, str(source))
    fetched = download(small)
    weights = needed_weights({file.name: file.path for file in fetched}, weights, str(source))
    return fetched + download(weights)


def _listing(source: HubSource) -> tuple[str, dict[str, _HubFile]]:
    """The commit that the revision stands for now, and its files by name."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(source.repo, revision=source.revision, files_metadata=True)
    files = {}
    for entry in info.siblings or ():
        sha256 = entry.lfs.sha256 if entry.lfs else None
        content_id = sha256 or entry.blob_id
        if entry.size is not None and content_id:
            files[entry.rfilename] = _HubFile(entry.rfilename, entry.size, sha256, content_id)
    if info.sha is None:
        raise DownloadFailed(f"the hub did not say which commit {source} is; try again later")
    return info.sha, files


def _download(
    repo: str, commit: str, file: _HubFile, part: Path, progress: Progress, *, gguf: bool = True
) -> Fetched:
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(repo, file.name, revision=commit)
    name = PurePosixPath(file.name).name
    with Writer(part, f"downloading {name}", file.size, progress) as out:
        if out.size > file.size:
            out.start_over()
        pauses = iter(_PAUSES)
        while out.size < file.size:
            start = out.size
            broken = _stream(url, out)
            if out.size > start:
                pauses = iter(_PAUSES)
            if broken is not None:
                _wait(pauses, broken)
        return out.finish(name, Expected(file.size, file.sha256, gguf=gguf))


def _wait(pauses: Iterator[int], broken: Exception) -> None:
    """Sleep before the next attempt, or give up."""
    pause = next(pauses, None)
    if pause is None:
        raise broken
    time.sleep(pause)


def _stream(url: str, out: Writer) -> Exception | None:
    """Append the rest of a file -> what broke the connection, or None."""
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, but not marked so for mypy
        build_hf_headers,
        get_session,
        hf_raise_for_status,
        httpx,
    )

    start = out.size
    headers = {**build_hf_headers(), "Range": f"bytes={start}-", "Accept-Encoding": "identity"}
    client: Any = get_session()
    try:
        with client.stream("GET", url, headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT) as response:
            hf_raise_for_status(response)
            if response.status_code != 206 and start:  # the server sends everything again
                out.start_over()
            out.write(response.iter_bytes())
    except httpx.TransportError as error:
        return cast(Exception, error)
    return None if out.size != start else httpx.RemoteProtocolError("the server sent nothing")


@contextmanager
def _hub_errors(source: HubSource) -> Iterator[None]:
    """Turn the library's errors into one sentence each."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # as above

    try:
        yield
    except errors.GatedRepoError as error:
        raise DownloadFailed(
            f"{source.repo} is gated: accept its licence on its page of the hub, then run `hf auth login` "
            "(or set HF_TOKEN) and pull again"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UnknownModel(
            f"the hub has no repository {source.repo!r} that you may read; check it, or run `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise BadInput(
            f"{source.repo} has no revision {source.revision!r}; leave out @... for the newest"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise DownloadFailed(
            f"{source} is not on this machine and HF_HUB_OFFLINE forbids downloads"
        ) from error
    except (errors.HfHubHTTPError, httpx.HTTPError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DownloadFailed(
            f"the download of {source} failed ({reason}); run the same command again to go on from there"
        ) from error
