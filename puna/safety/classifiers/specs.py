"""A classifier from one line of an option or a settings file."""

from __future__ import annotations

from pathlib import Path

from puna.core import BadValue, closest
from puna.safety.verdict import Classifier

# kind -> what follows its colon
SPECS = {
    "patterns": "FILE",
    "scan": "KIND,KIND",
    "http": "URL#MODEL",
    "injection": "FOLDER",
}


def make(spec: str) -> Classifier:
    """The classifier that a line describes; its files and libraries are read now, and nothing is sent.

    `patterns:FILE` (TOML), `scan:hidden,special,secrets,personal,code`, `http:URL#MODEL` (an endpoint of the
    form of OpenAI's moderations), `injection:FOLDER` (an encoder). Raises BadInput with what was expected.
    """
    kind, colon, rest = spec.partition(":")
    forms = ", ".join(f"{name}:{value}" for name, value in SPECS.items())
    if kind not in SPECS or not colon:
        raise BadValue(f"a classifier must be one of {forms}, got {spec!r:.100}{closest(kind, list(SPECS))}")
    if not rest:
        raise BadValue(f"{kind}: must be followed by {SPECS[kind]}, got nothing")
    # imported on demand: each needs libraries of its own
    if kind == "patterns":
        from puna.safety.classifiers.patterns import Patterns

        return Patterns(Path(rest))
    if kind == "scan":
        from puna.safety.classifiers.scanning import Scanning

        return Scanning(rest)
    if kind == "http":
        from puna.safety.classifiers.http import Http

        return Http.from_spec(rest)
    from puna.safety.classifiers.injection import Injection

    return Injection(Path(rest))
