"""Which agreements a model is under: a licence belongs to an artifact, not to the name of a family.

Everything that speaks of it is a claim with its evidence: the catalog, a tag of the file, a model card, a
LICENSE beside it, the models it was made from. Claims that disagree stay side by side; nobody guesses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from puna.core import BadFile, UnknownModel, closest
from puna.license import texts
from puna.license.agreements import Agreement, agreements, artifact_rows, find, get
from puna.model import catalog

_TERMS = re.compile(r"(?i)(licen[cs]e|copying)(\.(txt|md))?")
_MORE_TERMS = re.compile(r"(?i)licen[cs]e[-_. ][\w. -]+")  # LICENSE.llama-3.txt: of an ancestor
_NOTICE = re.compile(r"(?i)notice(\.(txt|md))?")
_SETTINGS = ("config.json", "adapter_config.json", "params.json")


@dataclass(frozen=True, slots=True)
class Claim:
    """That a model is under an agreement, or under terms of somebody else's."""

    agreement: Agreement | None
    other: str  # the terms' name where they are no agreement of Meta's; else empty
    evidence: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model, what is said of it, and what it was made from."""

    name: str
    place: Path | None = None  # the folder, or the GGUF file, that is looked at
    claims: tuple[Claim, ...] = ()
    bases: tuple[Artifact, ...] = ()  # whose weights are in it
    teachers: tuple[Artifact, ...] = ()  # whose outputs it was trained on
    is_quantized: bool = False  # a base in fewer bits and no more
    sees: bool | None = None  # takes pictures; None: nobody says
    files: Mapping[str, Path] = field(default_factory=dict)  # license, notice, readme: those beside it
    more_terms: tuple[Path, ...] = ()  # further texts of agreements: a model can have several ancestors

    @property
    def own(self) -> tuple[Agreement, ...]:
        """Of its own claims, without those of what it was made from."""
        return tuple(dict.fromkeys(claim.agreement for claim in self.claims if claim.agreement))

    @property
    def other(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(claim.other for claim in self.claims if claim.other))

    @property
    def is_derived(self) -> bool:
        """Trained or put together from another, not merely stored in fewer bits."""
        return bool(self.bases or self.teachers) and not self.is_quantized

    @property
    def may_see(self) -> bool | None:
        """Whether it takes pictures, by its own word or that of its bases."""
        if self.sees is not None or not self.bases:
            return self.sees
        found = {base.may_see for base in self.bases}
        return True if True in found else None if None in found else False


@dataclass(frozen=True, slots=True)
class Tie:
    """How an agreement reaches a model."""

    agreement: Agreement
    by_outputs: bool  # through what a teacher said only
    via: str  # empty: by its own claims


def ties(artifact: Artifact) -> list[Tie]:
    """Every agreement of a model, its ancestors and teachers, once each, the nearest first."""
    found: dict[str, Tie] = {}
    for tie in _ties(artifact, by_outputs=False, via="", seen=frozenset()):
        known = found.get(tie.agreement.id)
        if known is None or (known.by_outputs and not tie.by_outputs):
            found[tie.agreement.id] = tie
    return list(found.values())


def _ties(artifact: Artifact, by_outputs: bool, via: str, seen: frozenset[str]) -> Iterator[Tie]:
    yield from (Tie(agreement, by_outputs, via) for agreement in artifact.own)
    seen |= {artifact.name}
    for base in artifact.bases:
        if base.name not in seen:
            yield from _ties(base, by_outputs, base.name, seen)
    for teacher in artifact.teachers:
        if teacher.name not in seen:
            yield from _ties(teacher, True, teacher.name, seen)


def named(name: str) -> Artifact:
    """The model of a name: of the catalog, of a repository, or of an agreement, for any model under it.

    Raises UnknownModel with the nearest name.
    """
    found = _known(name)
    if found is None:
        known = [*catalog.names(), *agreements()]
        hint = closest(name.lower(), known) or f"; the agreements are {', '.join(agreements())}"
        raise UnknownModel(f"there is no file and no known model {name!r:.100}{hint}")
    return found


def _known(name: str) -> Artifact | None:
    last = name.rstrip("/").rpartition("/")[2].removesuffix(".git")
    entry = catalog.get(last) or catalog.get(last.lower().removeprefix("meta-"))
    row = next(
        (row for row in artifact_rows() if any(fnmatchcase(last.lower(), m) for m in row["match"])), None
    )
    claims: list[Claim] = []
    sees = None
    if entry is not None:
        agreement = get(entry.licence)
        other = "" if agreement else entry.licence
        claims.append(Claim(agreement, other, f"the catalog's entry {entry.name}"))
        sees = entry.config.vision is not None
    if row is not None:
        told = row.get("also") or row.get("agreement")
        claims.append(
            Claim(find(told) if told else None, row.get("other", ""), f"{row['source']}: {row['note']}")
        )
        sees = row.get("multimodal", sees)
    if not claims and (agreement := get(name)):
        claims.append(Claim(agreement, "", "named as such"))
    return Artifact(last if "/" in name else name, claims=tuple(claims), sees=sees) if claims else None


def base(name: str) -> Artifact:
    """An ancestor that a file names: one that nothing is known of says nothing."""
    return _known(name) or Artifact(name)


def of_path(place: Path, metadata: Mapping[str, Any] | None = None) -> Artifact:
    """The model in a folder, or of a GGUF file with its metadata. Raises BadFile for unreadable texts."""
    name = place.stem if place.is_file() else place.resolve().name
    files = _beside(place)
    found = Artifact(name, place, files=files, more_terms=_more_terms(place, files))
    if metadata:
        found = _of_gguf(found, metadata)
    for kind, read in (("readme", _of_card), ("license", _of_terms), ("notice", _of_notice)):
        if kind in found.files:
            found = read(found, found.files[kind])
    if place.is_dir():
        for setting in _SETTINGS:
            if (place / setting).is_file():
                found = _of_settings(found, place / setting)
    if found.claims or found.bases:
        return found
    called = str((metadata or {}).get("general.name", "")).strip().replace(" ", "-")
    known = (called and _known(called)) or _known(name)
    if known is None or known.claims[0].evidence == "named as such":
        return found
    guess = replace(known.claims[0], evidence=f"its name alone ({known.name}); {known.claims[0].evidence}")
    return replace(
        found, claims=(guess, *known.claims[1:]), sees=known.sees if found.sees is None else found.sees
    )


def _beside(place: Path) -> dict[str, Path]:
    """LICENSE, NOTICE and README of a folder; of a file those that bear its name, or else its folder's."""
    folder = place if place.is_dir() else place.parent
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not path.is_file():
            continue
        own = place.is_file() and path.name.startswith(f"{place.stem}.")
        rest = path.name[len(place.stem) + 1 :] if own else path.name
        kind = "license" if _TERMS.fullmatch(rest) else "notice" if _NOTICE.fullmatch(rest) else ""
        kind = kind or ("readme" if rest.lower() == "readme.md" else "")
        if kind and (own or kind not in found):
            found[kind] = path
    return found


def _more_terms(place: Path, files: Mapping[str, Path]) -> tuple[Path, ...]:
    folder = place if place.is_dir() else place.parent
    return tuple(
        path
        for path in sorted(folder.iterdir())
        if _MORE_TERMS.fullmatch(path.name) and path.is_file() and path not in files.values()
    )


def claim(text: str, evidence: str) -> Claim:
    """What a tag says: an agreement, or other terms."""
    agreement = get(text)
    return Claim(agreement, "" if agreement else text, evidence)


def _with(
    artifact: Artifact, more: Sequence[Claim], bases: Sequence[Artifact] = (), **changes: Any
) -> Artifact:
    known = {one.name for one in artifact.bases}
    added = tuple(one for one in bases if one.name not in known and one.name != artifact.name)
    return replace(artifact, claims=(*artifact.claims, *more), bases=(*artifact.bases, *added), **changes)


def _of_gguf(artifact: Artifact, metadata: Mapping[str, Any]) -> Artifact:
    found = [str(metadata.get(key, "")) for key in ("general.license", "general.license.name")]
    tags = [tag for tag in found if tag and tag.lower() not in ("other", "unknown")]
    claims = [claim(tag, f"general.license of {artifact.name}: {tag}") for tag in dict.fromkeys(tags)]
    if any(one.agreement for one in claims):  # license.name may be a title that says no more
        claims = [one for one in claims if one.agreement]
    count = metadata.get("general.base_model.count", 0)
    bases = [
        base(
            str(metadata.get(f"general.base_model.{i}.repo_url") or metadata[f"general.base_model.{i}.name"])
        )
        for i in range(min(count, 64) if isinstance(count, int) else 0)
        if f"general.base_model.{i}.name" in metadata or f"general.base_model.{i}.repo_url" in metadata
    ]
    kind = metadata.get("general.architecture")
    sees = True if kind in ("llama4", "mllama") else artifact.sees
    return _with(artifact, claims, bases, sees=sees, is_quantized="general.quantized_by" in metadata)


def _of_card(artifact: Artifact, path: Path) -> Artifact:
    card = texts.front_matter(texts.read_text(path))
    tags = [tag for key in ("license", "license_name") for tag in card.get(key, ())]
    if "other" in (tag.lower() for tag in tags) and len(tags) > 1:
        tags = [tag for tag in tags if tag.lower() != "other"]
    claims = [claim(tag, f"{path.name}: license {tag}") for tag in dict.fromkeys(tags)]
    bases = [base(name) for name in card.get("base_model", ())]
    is_quantized = artifact.is_quantized or card.get("base_model_relation", ())[:1] == ("quantized",)
    sees = True if card.get("pipeline_tag", ())[:1] == ("image-text-to-text",) else artifact.sees
    return _with(artifact, claims, bases, is_quantized=is_quantized, sees=sees)


def _of_terms(artifact: Artifact, path: Path) -> Artifact:
    found = texts.agreement_of_text(texts.read_text(path))
    return _with(
        artifact, [Claim(found[0], "", f"{path.name}: the title of {found[0].name}")] if found else []
    )


def _of_notice(artifact: Artifact, path: Path) -> Artifact:
    """A notice speaks for a model and for what it was made from: it counts where nothing else speaks."""
    if artifact.own or any(one.own for one in artifact.bases):
        return artifact
    said = texts.agreement_of_notice(texts.read_text(path))
    return _with(artifact, [Claim(one, "", f"{path.name}: its notice line") for one in said])


def _of_settings(artifact: Artifact, path: Path) -> Artifact:
    try:
        found = json.loads(texts.read_text(path))
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{path} must be JSON and is not: {error}") from None
    if not isinstance(found, dict):
        raise BadFile(f"{path} must hold a JSON object, found {type(found).__name__}")
    of_adapter = found.get("base_model_name_or_path")
    of_config = None if artifact.claims or artifact.bases else found.get("_name_or_path")
    names = [name for name in (of_adapter, of_config) if isinstance(name, str) and name]
    sees = artifact.sees
    if path.name == "config.json":
        is_vision = "vision_config" in found or str(found.get("model_type")).startswith(("mllama", "llama4"))
        sees = sees if sees is not None else is_vision
    return _with(artifact, [], [base(name) for name in names], sees=sees)
