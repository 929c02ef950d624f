"""Licences where a duty arises: what a served model is shown with, what goes along with an exported one.

The rules are puna.license's; here files are opened for them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from puna.core import BadInput, PunaError
from puna.license import marks, texts
from puna.license.artifacts import Artifact, claim, named, of_path, ties
from puna.license.fix import notice_lines, write_notice
from puna.weights import store
from puna.weights.files.gguf import GgufFile


def located(what: str) -> Artifact:
    """A model by its folder or file, or by its name in the store or the catalog. Raises UnknownModel."""
    path = Path(what).expanduser()
    if path.exists():
        return of_file(path)
    stored = store.find(what)
    return named(what) if stored is None else replace(of_file(stored.path), name=stored.name, place=None)


def of_file(path: Path) -> Artifact:
    """The model of a path, with what the store knows of it."""
    found = of_path(path, gguf_metadata(path))
    stored = next((one for one in store.list_models() if one.path == path), None)
    if stored is None or not stored.licence:
        return found
    told = claim(stored.licence, f"the store's record of {stored.name}")
    is_new = told.agreement not in found.own if told.agreement else told.other not in found.other
    return replace(found, claims=(told, *found.claims)) if is_new else found


def gguf_metadata(path: Path) -> Mapping[str, Any]:
    """What a GGUF file says of itself; nothing for a folder without one."""
    if path.is_dir():
        files = sorted(file for file in path.glob("*.gguf") if not file.name.startswith("mmproj"))
        return gguf_metadata(files[0]) if files else {}
    if path.suffix.lower() != ".gguf":
        raise BadInput(f"{path} is no folder and no .gguf file; name one of these, or a model")
    file = GgufFile.open(path)
    try:
        keys = [key for key in file.metadata if key.startswith("general.")]
        return {key: file.metadata[key] for key in keys}
    finally:
        file.close()


@lru_cache(maxsize=1024)
def marks_of(path: Path) -> tuple[str, ...]:
    """The phrases that a server of a model has to show; none where its files cannot be read."""
    try:
        return tuple(marks(of_file(path)))
    except (PunaError, OSError):
        return ()


def keep(source: Path, destination: Path) -> list[str]:
    """Write the notice of an exported model and copy the agreement that came with its source -> what is to
    be said of it, a sentence each; nothing for a model that no Llama agreement reaches.
    """
    found = of_file(source)
    if len(found.own) > 1:
        names = " and ".join(one.id for one in found.own)
        return [f"its licence is unclear ({names}), so no notice was written: see `puna license check`"]
    lines = notice_lines(found)
    if not lines:
        return []
    said = []
    written = write_notice(destination, lines)
    if written is not None:
        said.append(f"the notice of its licence is in {written.name}")
    copied = _copy_terms(source, destination)
    if copied:
        said.append(f"{', '.join(copied)} copied")
    elif "license" not in found.files:
        texts_at = ", ".join(tie.agreement.source for tie in ties(found) if not tie.by_outputs)
        said.append(f"whoever gets it has to get the agreement too: {texts_at}")
    return said + _name_hint(found, destination)


def _copy_terms(source: Path, destination: Path) -> list[str]:
    """LICENSE and use policy from beside the source, under names that belong to the destination."""
    folder = source if source.is_dir() else source.parent
    copied = []
    for path in sorted(folder.iterdir()):
        is_policy = path.name.upper().startswith("USE_POLICY")
        if not path.is_file() or not (is_policy or path.name.upper().startswith("LICEN")):
            continue
        if not is_policy and texts.agreement_of_text(texts.read_text(path)) is None:
            continue
        own = destination / path.name if destination.is_dir() else None
        target = own or destination.with_name(f"{destination.stem}.{path.stem}{path.suffix or '.txt'}")
        if not target.exists():
            shutil.copyfile(path, target)
            copied.append(target.name)
    return copied


def _name_hint(found: Artifact, destination: Path) -> list[str]:
    """That a name has to begin with a prefix once the model is trained further and offered."""
    prefixes = [tie.agreement.rule("name-prefix") for tie in ties(found)]
    wanted = [rule.mark for rule in prefixes if rule and not texts.begins_with(destination.stem, rule.mark)]
    if not wanted:
        return []
    longest = max(wanted, key=len)
    name = f"{longest.replace(' ', '-')}-{destination.stem}"
    return [f"a model made from it needs a name that begins with “{longest}” to be offered: {name}"]
