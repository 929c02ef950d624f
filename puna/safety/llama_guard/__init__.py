"""Llama Guard, every generation: how it is asked, and what its answers mean.

versions.py  what each was taught to see, and how its prompt is laid out (categories.toml)
prompt.py    the prompt, built from ids where a checkpoint has no template or its categories are not wanted
reading.py   what a checkpoint's own template says of it; what an answer means
"""

from puna.safety.llama_guard.prompt import GuardPrompt, build, chosen
from puna.safety.llama_guard.reading import Guard, guard_of, is_guard, verdict
from puna.safety.llama_guard.versions import Category, Version, find, versions

__all__ = [
    "Category", "Guard", "GuardPrompt", "Version", "build", "chosen", "find", "guard_of", "is_guard",
    "verdict", "versions",
]  # fmt: skip
