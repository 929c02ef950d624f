"""Whether a grammar can be compiled at a bounded cost, found out beside this process.

No limit of llguidance's bounds its compiler: thirty patterns in an allOf, or a multipleOf of a large prime,
take it minutes or gigabytes, some thousand references its stack, and nothing can stop it in a thread. So
every grammar is compiled first in a process that the system ends where it goes too far (trial.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from puna.text.confined import Confined


class Trials:
    """One grammar at a time, for a vocabulary with these control tokens; safe in any thread."""

    def __init__(self, control_tokens: Sequence[str], limits: Mapping[str, Any]) -> None:
        self._confined = Confined("puna.engine.trial", [list(control_tokens), dict(limits)])

    def is_bounded(self, grammar: str) -> bool:
        """Whether the grammar can be compiled within the limits of trial.py."""
        return self._confined.ask(json.dumps(grammar)) is True
