"""A model and its licences as a machine-learning bill of materials: CycloneDX 1.6, JSON.

https://cyclonedx.org/docs/1.6/json/: a component of the type machine-learning-model with its card, its
ancestors as pedigree, and the verdicts as properties under names that begin with "puna:license:".
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import date
from typing import Any

from puna.license.agreements import DISCLAIMER
from puna.license.artifacts import Artifact
from puna.license.check import Verdict

SPDX = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-3-clause": "BSD-3-Clause",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
}


def bill(
    artifact: Artifact, verdicts: Sequence[Verdict], today: date, version: str, sha256: str | None = None
) -> dict[str, Any]:
    """`version` is Puna's, `sha256` that of the model's file. Equal input makes an equal bill."""
    component = _component(artifact, "model") | {
        "modelCard": _card(artifact),
        "properties": [
            *({"name": f"puna:license:{_key(v)}", "value": f"{v.verdict}: {v.evidence}"} for v in verdicts),
            {"name": "puna:license:disclaimer", "value": DISCLAIMER},
        ],
    }
    if sha256 is not None:
        component["hashes"] = [{"alg": "SHA-256", "content": sha256}]
    sources = [(f"{base.name}-{i}", base) for i, base in enumerate((*artifact.bases, *artifact.teachers))]
    weights = len(artifact.bases)
    if artifact.bases:
        component["pedigree"] = {"ancestors": [_component(one, name) for name, one in sources[:weights]]}
    body: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": f"{today.isoformat()}T00:00:00Z",
            "tools": {"components": [{"type": "application", "name": "puna", "version": version}]},
        },
        "components": [component, *(_component(one, name) for name, one in sources[weights:])],
    }
    digest = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "serialNumber": f"urn:uuid:{digest}",
    } | body


def _key(verdict: Verdict) -> str:
    return ":".join(part for part in (verdict.agreement, verdict.clause, verdict.topic) if part)


def _component(artifact: Artifact, ref: str) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "machine-learning-model", "bom-ref": ref, "name": artifact.name}
    licences: list[dict[str, Any]] = [
        {"license": {"name": one.name, "url": one.source, "acknowledgement": "declared"}}
        for one in artifact.own
    ]
    for name in artifact.other:
        known = SPDX.get(name.lower())
        licences.append({"license": {"id": known} if known else {"name": name}})
    return found | ({"licenses": licences} if licences else {})


def _card(artifact: Artifact) -> dict[str, Any]:
    formats = ["text", "image"] if artifact.may_see else ["text"]
    return {
        "modelParameters": {
            "task": "text-generation",
            "inputs": [{"format": name} for name in formats],
            "outputs": [{"format": "text"}],
        },
        "considerations": {
            "technicalLimitations": [
                "The agreements' acceptable use policies forbid uses: see the properties."
            ]
        }
        if artifact.own or artifact.bases
        else {},
    }
