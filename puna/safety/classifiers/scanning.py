"""The scanners as a classifier: a text in which one of the chosen kinds finds something is unsafe."""

from __future__ import annotations

from collections.abc import Sequence

from puna.safety.classifiers.texts import InThread
from puna.safety.scanners.personal import check_region
from puna.safety.scanners.scan import kinds_of, scan
from puna.safety.verdict import Verdict

# kind -> category of a verdict
_CATEGORIES = {
    "hidden": "hidden-characters",
    "special": "control-tokens",
    "secrets": "secrets",
    "personal": "personal-data",
    "code": "unsafe-code",
}


class Scanning(InThread):
    """`kinds` as `puna safety scan --kinds` takes them."""

    def __init__(self, kinds: str, region: str = "US") -> None:
        """Raises BadValue, and BadInput where a library is not installed: here, not at the first text."""
        self._kinds = kinds_of(kinds)
        self._region = region
        if "personal" in self._kinds:
            check_region(region)
        scan(_EVERYTHING, self._kinds, region)
        self.categories = frozenset(_CATEGORIES[kind] for kind in self._kinds)
        super().__init__(f"scan:{kinds}", self._verdicts)

    def _verdicts(self, texts: Sequence[str]) -> Sequence[Verdict]:
        return [self._verdict(text) for text in texts]

    def _verdict(self, text: str) -> Verdict:
        found = {one.kind for one in scan(text, self._kinds, self._region)}
        categories = tuple(_CATEGORIES[kind] for kind in self._kinds if kind in found)
        return Verdict(bool(categories), float(bool(categories)), categories)


_EVERYTHING = "é <|eot_id|>\n```python\npass\n```"  # makes every scanner load what it needs
