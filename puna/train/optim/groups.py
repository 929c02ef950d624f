"""Which parameters get which settings: patterns over names, the first that matches decides.

Every parameter is in one group, and every pattern but the last has some: a rule that matches nothing is a
mistake in its spelling.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from pydantic import with_config

from puna.core import BadValue
from puna.train.strict import STRICT

Parameter = TypeVar("Parameter")
Optimizer = Literal["adamw", "muon"]


@with_config(STRICT)
@dataclass(frozen=True, slots=True)
class Rule:
    """Settings of the parameters whose whole name `pattern` matches. Raises BadValue."""

    pattern: str = ".*"
    optimizer: Optimizer = "adamw"
    rate: float = 1.0  # times the schedule's
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise BadValue(f"pattern must be a regular expression, got {self.pattern!r}: {error}") from None
        if self.rate < 0 or self.weight_decay < 0 or self.eps <= 0:
            raise BadValue("rate and weight_decay must be 0 or more, eps above 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise BadValue(f"betas must be from 0 to below 1, got {self.betas}")


# Norms and gates have no directions that could grow: decay is for matrices (every release's recipe).
DEFAULT = (Rule(r".*norm|.*gate_\w+", weight_decay=0.0), Rule())


def claimed(
    rules: Sequence[Rule], parameters: Mapping[str, Parameter]
) -> list[tuple[Rule, dict[str, Parameter]]]:
    """The parameters of each rule, by name.

    Raises BadValue for a rule that claims none, and for a parameter that none claims.
    """
    found: list[tuple[Rule, dict[str, Parameter]]] = [(rule, {}) for rule in rules]
    for name, parameter in parameters.items():
        group = next((group for rule, group in found if re.fullmatch(rule.pattern, name)), None)
        if group is None:
            raise BadValue(f"no rule claims {name}; end with one whose pattern is .*")
        group[name] = parameter
    for number, (rule, group) in enumerate(found, start=1):
        if not group and rule is not rules[-1]:
            first = next(iter(parameters))
            raise BadValue(
                f"rule {number}, {rule.pattern!r}, matches no parameter that is left to it; "
                f"names are like {first}"
            )
    return found
