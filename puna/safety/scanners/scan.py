"""All scanners by their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from puna.core import BadValue, closest
from puna.safety.scanners import code, hidden, personal, secrets, special
from puna.safety.scanners.finding import Finding

_SCANNERS: Mapping[str, Callable[[str], list[Finding]]] = {
    hidden.KIND: hidden.scan,
    special.KIND: special.scan,
    secrets.KIND: secrets.scan,
    code.KIND: code.scan,
}
KINDS = (hidden.KIND, special.KIND, secrets.KIND, personal.KIND, code.KIND)
DEFAULT = KINDS[:-1]  # code needs a tool of its own


def kinds_of(text: str) -> tuple[str, ...]:
    """The kinds of a list with commas. Raises BadValue for one that is unknown, or given twice."""
    kinds = tuple(part.strip() for part in text.split(","))
    for i, kind in enumerate(kinds):
        if kind not in KINDS:
            raise BadValue(f"kinds must be of {', '.join(KINDS)}, got {kind!r:.60}{closest(kind, KINDS)}")
        if kind in kinds[:i]:
            raise BadValue(f"kinds must differ, got {kind!r} twice")
    return kinds


def scan(text: str, kinds: Sequence[str] = DEFAULT, region: str = "US") -> list[Finding]:
    """What scanners of these kinds find, in its order in the text; `region` says whose national numbers.

    Raises BadInput where a library is not installed, and what a tool for code raises.
    """
    found: list[Finding] = []
    for kind in kinds:
        found += personal.scan(text, region) if kind == personal.KIND else _SCANNERS[kind](text)
    return sorted(found)
