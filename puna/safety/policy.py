"""An operator's rules of what is checked and what follows from it, a TOML file:

default = "standard"              # of whoever has a key that names none, or no key

[[policy]]
name = "standard"                 # as keys name it
input = ["guard:llama-guard-3-8b"]   # who judges what is asked
output = ["guard:llama-guard-3-8b"]  # who judges what is answered
action = "block"                  # or "report": everything passes, the audit says what would not have
on_error = "block"                # or "pass": what happens to texts that could not be judged
threshold = 0.5                   # scores from here on are unsafe; without it each judge decides
categories = ["hate"]             # only these count, and what names none; without it all
window = 400                      # characters of an answer that are judged at a time
overlap = 800                     # characters before them that are judged again
timeout = 30                      # seconds that a verdict may take
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from puna.core import BadValue, UnknownOption, closest
from puna.safety.verdict import Verdict

GUARD = "guard:"  # and the name of a model that the server has
Action = Literal["block", "report"]
OnError = Literal["block", "pass"]
_CHOICES = {"action": ("block", "report"), "on_error": ("block", "pass")}


@dataclass(frozen=True, slots=True)
class Policy:
    """Raises BadValue for values that make no sense."""

    name: str
    input: tuple[str, ...] = ()
    output: tuple[str, ...] = ()
    action: Action = "block"
    on_error: OnError = "block"
    threshold: float | None = None
    categories: tuple[str, ...] | None = None
    window: int = 400
    overlap: int = 800
    timeout: float = 30.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 1 <= len(self.name) <= 100 or not self.name.isprintable():
            raise BadValue(f"name must be a text of 1 to 100 letters, found {self.name!r:.80}")
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise BadValue(f"{name} must be one of {', '.join(known)}, found {value!r}")
        for name in ("input", "output", "categories"):
            texts = getattr(self, name)
            if texts is not None and not all(isinstance(text, str) and text for text in texts):
                raise BadValue(f"{name} must be a list of texts, found {list(texts)!r:.80}")
        ranges = [("window", 1, 1_000_000), ("overlap", 0, 1_000_000), ("timeout", 0.01, 3600)]
        for name, least, most in [*ranges, *([("threshold", 0, 1)] if self.threshold is not None else [])]:
            value = getattr(self, name)
            whole = name in ("window", "overlap")
            if type(value) not in ((int,) if whole else (int, float)) or not least <= value <= most:
                kind = "a whole number" if whole else "a number"
                raise BadValue(f"{name} must be {kind} from {least:,} to {most:,}, found {value!r}")

    @property
    def judges(self) -> frozenset[str]:
        """Everybody who is asked."""
        return frozenset((*self.input, *self.output))

    def counts(self, verdict: Verdict) -> bool:
        """Whether a verdict stands against a text."""
        is_unsafe = verdict.is_unsafe if self.threshold is None else verdict.score >= self.threshold
        if self.categories is None or not verdict.categories:
            return is_unsafe
        return is_unsafe and not set(verdict.categories).isdisjoint(self.categories)


@dataclass(frozen=True, slots=True)
class Policies:
    """Those of a file; without one, nobody has any."""

    policies: Mapping[str, Policy]
    default: str | None = None

    @property
    def guards(self) -> list[str]:
        """Models of the server that are asked, by their names."""
        return [spec.removeprefix(GUARD) for spec in self._judges if spec.startswith(GUARD)]

    @property
    def others(self) -> list[str]:
        """Classifiers that are asked and are no models of the server."""
        return [spec for spec in self._judges if not spec.startswith(GUARD)]

    @property
    def _judges(self) -> list[str]:
        return sorted({spec for policy in self.policies.values() for spec in policy.judges})

    def named(self, name: str | None) -> Policy | None:
        """The policy of that name, or the default without one. Raises BadValue for an unknown name."""
        name = name or self.default
        if name is None:
            return None
        if name not in self.policies:
            raise BadValue(f"there is no safety policy {name!r}{closest(name, list(self.policies))}")
        return self.policies[name]


def read_policies(path: Path) -> Policies:
    """Raises BadValue and UnknownOption with what is wrong in the file."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadValue(f"the safety policies {path} must be a readable TOML file: {error}") from None
    _check_names(path, content, ("default", "policy"), "setting")
    entries = content.get("policy", [])
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise BadValue(f"{path} must have tables [[policy]] with name, input and output; found none")
    found: dict[str, Policy] = {}
    for number, entry in enumerate(entries, start=1):
        policy = _policy(f"{path}: policy {number}", entry)
        if policy.name in found:
            raise BadValue(f"{path} has two policies {policy.name!r}; remove one")
        found[policy.name] = policy
    default = content.get("default")
    if default is not None and default not in found:
        raise BadValue(f"{path}: default must be one of {', '.join(found)}, found {default!r}")
    return Policies(found, default)


def _policy(where: str, entry: dict[str, Any]) -> Policy:
    _check_names(where, entry, [field.name for field in fields(Policy)], "field")
    if "name" not in entry:
        raise BadValue(f"{where} needs name")
    for name in ("input", "output", "categories"):
        if not isinstance(entry.get(name, []), list):
            raise BadValue(f"{where}: {name} must be a list of texts, found {entry[name]!r:.80}")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()
    }
    try:
        policy = Policy(**values)
    except BadValue as error:
        raise BadValue(f"{where}: {error}") from None
    if "input" not in entry and "output" not in entry:
        raise BadValue(f"{where} needs input or output; one that checks nothing says input = []")
    return policy


def _check_names(where: object, found: dict[str, Any], known: Sequence[str], what: str) -> None:
    for name in found:
        if name not in known:
            raise UnknownOption(f"{where}: there is no {what} {name!r}{closest(name, list(known))}")
