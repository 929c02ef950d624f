"""What the Llama agreements ask of whoever uses, serves, ships or trains on a model. Never legal advice.

    duties("llama-3.1-8b-instruct", "serve")     what a host has to do
    check(artifact, situation)                   a verdict for every clause

Pure: facts in data files and rules over them; reads texts beside a model, no weights, no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puna.license.agreements import DISCLAIMER
from puna.license.artifacts import Artifact, named, of_path
from puna.license.check import Verdict, check
from puna.license.situation import Situation, activities

__all__ = ["DISCLAIMER", "Situation", "Verdict", "artifact_of", "check", "duties", "marks"]


def artifact_of(path_or_name: str | Path, metadata: Mapping[str, Any] | None = None) -> Artifact:
    """A model by its folder, its GGUF file with the metadata of that, or its name.

    Raises UnknownModel for a name that is none.
    """
    path = Path(path_or_name)
    return of_path(path, metadata) if path.exists() else named(str(path_or_name))


def duties(
    path_or_name: str | Path, activity: str, metadata: Mapping[str, Any] | None = None
) -> list[Verdict]:
    """What has to be done, or is seen not to be done, by who does `activity` with a model; nothing
    for a model that no Llama agreement reaches."""
    found = check(artifact_of(path_or_name, metadata), Situation(activities([activity])))
    return [verdict for verdict in found if verdict.verdict in ("duty", "violated")]


def marks(artifact: Artifact) -> list[str]:
    """The phrases that who serves a model has to show."""
    from puna.license.artifacts import ties

    rules = [tie.agreement.rule("attribution") for tie in ties(artifact) if not tie.by_outputs]
    return list(dict.fromkeys(rule.mark for rule in rules if rule is not None))
