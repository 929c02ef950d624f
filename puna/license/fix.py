"""Write what can be written: the notice line, and the attribution. Never the text of an agreement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from puna.license import texts
from puna.license.artifacts import Artifact, ties
from puna.license.check import Verdict


def notice_lines(artifact: Artifact) -> list[str]:
    """The lines that every copy of a model has to carry."""
    return [tie.agreement.notice for tie in ties(artifact) if tie.agreement.notice and not tie.by_outputs]


def notice_path(place: Path) -> Path:
    """NOTICE in a folder; beside a GGUF file one that bears its name."""
    return place / "NOTICE" if place.is_dir() else place.with_name(f"{place.stem}.NOTICE.txt")


def write_notice(place: Path, lines: Sequence[str], existing: Path | None = None) -> Path | None:
    """Add the lines that are missing to the notice of a folder or file -> the path, None where none was."""
    path = existing or notice_path(place)
    before = texts.read_text(path) if path.exists() else ""
    missing = [line for line in lines if line not in before]
    if not missing:
        return None
    _append(path, before, missing)
    return path


def write_attribution(path: Path, phrases: Sequence[str]) -> Path | None:
    """Add the phrases that readers do not see yet at the end of a text -> the path, None where none was."""
    before = texts.read_text(path) if path.exists() else ""
    missing = [phrase for phrase in phrases if not texts.shows(before, phrase)]
    if not missing:
        return None
    is_page = path.suffix.lower() in (".html", ".htm")
    if is_page and "</body>" in before:
        head, _, tail = before.rpartition("</body>")
        path.write_text(
            head + "".join(f"<p>{phrase}</p>\n" for phrase in missing) + "</body>" + tail, "utf-8"
        )
    else:
        _append(path, before, [f"<p>{phrase}</p>" if is_page else phrase for phrase in missing])
    return path


def _append(path: Path, before: str, lines: Sequence[str]) -> None:
    gap = "" if not before else "\n" if before.endswith("\n") else "\n\n"
    path.write_text(before + gap + "\n\n".join(lines) + "\n", encoding="utf-8")


def apply(artifact: Artifact, verdicts: Sequence[Verdict], attribution: Path | None) -> list[Path]:
    """Write what verdicts ask for beside a model, and the attribution to a file or the card -> paths."""
    open_topics = {verdict.topic for verdict in verdicts if verdict.verdict in ("violated", "duty")}
    place, written = artifact.place, []
    if "notice" in open_topics and place is not None:
        written.append(write_notice(place, notice_lines(artifact), artifact.files.get("notice")))
    if "attribution" in open_topics:
        rules = [tie.agreement.rule("attribution") for tie in ties(artifact) if not tie.by_outputs]
        phrases = list(dict.fromkeys(rule.mark for rule in rules if rule))
        target = (
            attribution
            or artifact.files.get("readme")
            or (place / "README.md" if place and place.is_dir() else None)
        )
        if target is not None:
            written.append(write_attribution(target, phrases))
    return [path for path in written if path is not None]
