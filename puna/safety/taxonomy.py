"""Categories of hazards: those of Llama Guard's generations, and what OpenAI's moderation API calls them.

Codes mean different things in different generations (S5 is Defamation in Llama Guard 3 and Specialized Advice
in 2), so that a guard's own prompt says which name a code has; here are only names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

OPENAI = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent",
    "self-harm", "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence",
    "violence/graphic",
)  # fmt: skip

# by the name of a category as `slug` writes it; those without a counterpart are left under their own names
_OPENAI_OF = {
    "violent-crimes": ("illicit", "illicit/violent", "violence"),
    "non-violent-crimes": ("illicit",),
    "sex-crimes": ("illicit",),
    "sex-related-crimes": ("illicit",),
    "child-exploitation": ("sexual", "sexual/minors"),
    "child-sexual-exploitation": ("sexual", "sexual/minors"),
    "indiscriminate-weapons": ("illicit", "illicit/violent"),
    "hate": ("hate",),
    "self-harm": ("self-harm",),
    "suicide-self-harm": ("self-harm",),
    "suicide-and-self-harm": ("self-harm",),
    "sexual-content": ("sexual",),
    # Llama Guard 1
    "violence-and-hate": ("violence", "hate"),
    "criminal-planning": ("illicit",),
    "guns-and-illegal-weapons": ("illicit", "illicit/violent"),
    "regulated-or-controlled-substances": ("illicit",),
}


def slug(name: str) -> str:
    """A category's name as a word: "Suicide & Self-Harm" is suicide-self-harm."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def openai_names(slugs: Iterable[str]) -> frozenset[str]:
    """The categories of OpenAI's that these are."""
    return frozenset(name for one in slugs for name in _OPENAI_OF.get(one, ()))
