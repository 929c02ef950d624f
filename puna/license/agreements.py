"""The seven agreements and their use policies, as the files of data/ state them.

Facts in our words; no text of an agreement is here but the lines that it wants reproduced. Nothing here says
what a model's agreement is (artifacts.py) or whether it is kept (check.py).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from puna.core import BadInput, closest

DISCLAIMER = "This is no legal advice: a reading of public texts by a program. The agreement itself binds."

Activity = Literal["use", "call", "serve", "distribute", "embed", "train-on-weights", "train-on-outputs"]
ACTIVITIES: Mapping[str, str] = {
    "use": "run it for yourself or inside your organisation",
    "call": "build on a model that somebody else hosts",
    "serve": "let others use it over a network",
    "distribute": "hand weights to others, as they are or changed",
    "embed": "ship it inside a product",
    "train-on-weights": "make or improve a model from its weights",
    "train-on-outputs": "make or improve a model with what it says",
}


@dataclass(frozen=True, slots=True)
class Rule:
    """One clause. `on` are the activities that trigger it; empty: all of them."""

    topic: str
    clause: str
    duty: str
    evidence: str  # what shows that it is kept
    fix: str
    on: tuple[str, ...] = ()
    mark: str = ""  # the words to show, or that a name begins with
    trigger: str = ""  # of attribution: a product that "uses" or that "contains" the model
    allowed: bool = False  # of outputs: whether they may improve other models


@dataclass(frozen=True, slots=True)
class Use:
    """A forbidden use, and the categories of Llama Guard 3 that see some of it."""

    id: str
    use: str
    hazards: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    id: str
    numbering: str
    uses: tuple[Use, ...]
    reading: str  # whose it is that a category of a guard belongs to a use


@dataclass(frozen=True, slots=True)
class Agreement:
    id: str
    name: str
    version: str
    kind: Literal["research", "community"]
    effective: date
    source: str
    sha256: str  # of the text at `source` on `read`; empty where it is not public
    policy: str  # id; empty where there is none
    policy_source: str
    policy_sha256: str
    read: date
    tags: tuple[str, ...]  # how hubs and GGUF files call it
    notice: str  # the line of the Notice file; empty: none
    mau_month: str  # YYYY-MM whose active users are counted; empty: no such test
    mau_limit: int
    rules: tuple[Rule, ...]

    def rule(self, topic: str) -> Rule | None:
        return next((rule for rule in self.rules if rule.topic == topic), None)


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((files(__package__) / "data" / f"{name}.toml").read_text(encoding="utf-8"))


def _tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}


def _agreement(name: str) -> Agreement:
    found = _read(name)
    rules = tuple(Rule(**_tuples(row)) for row in found.pop("rules"))
    return Agreement(rules=rules, **_tuples(found))


@cache
def agreements() -> Mapping[str, Agreement]:
    """By id, in the order of their dates."""
    names = ("llama-1", "llama-2", "llama-3", "llama-3.1", "llama-3.2", "llama-3.3", "llama-4")
    return {name: _agreement(name) for name in names}


@cache
def policy(name: str) -> Policy:
    found = _read(name)
    uses = tuple(Use(**_tuples(row)) for row in found["uses"])
    return Policy(found["id"], found["numbering"], uses, found["reading"])


@cache
def artifact_rows() -> tuple[Mapping[str, Any], ...]:
    return tuple(_read("artifacts")["artifacts"])


def _plain(name: str) -> str:
    """llama-3.1, Llama 3.1, llama3.1, llama3_1 and "Llama 3.1 Community License" are one."""
    text = re.sub(r"(community|license|licence|agreement|meta)", "", name.lower())
    return re.sub(r"[^a-z0-9]", "", re.sub(r"(?<=\d)[._-](?=\d)", "p", text))


def get(name: str) -> Agreement | None:
    """The agreement of an id, a tag or a name in any spelling, or None."""
    wanted = _plain(name)
    return next((one for one in agreements().values() if _plain(one.id) == wanted), None)


def find(name: str) -> Agreement:
    """`get`, or BadInput with the nearest name."""
    found = get(name)
    if found is None:
        hint = closest(name.lower(), list(agreements())) or f"; there are {', '.join(agreements())}"
        raise BadInput(f"there is no Llama agreement {name!r:.100}{hint}")
    return found
