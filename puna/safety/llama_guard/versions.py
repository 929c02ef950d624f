"""The generations of Llama Guard: what each was taught to see, and how its prompt is laid out.

Layouts are data of the models: a blank more is another prompt than the one they were trained on. Where each
was read stands in docs/safety.md, and what it was checked against in tests/safety/golden.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Literal

from puna.core import BadInput, closest
from puna.safety.taxonomy import slug

Pictures = Literal["none", "one", "many"]


@dataclass(frozen=True, slots=True)
class Token:
    """A control token by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Category:
    """Something that must not be. `code` is empty for one of a user's own that has none yet."""

    code: str
    title: str  # in the prompt
    name: str  # in the model card
    text: str = ""  # what the prompt may say of it
    space: bool = False  # behind its title
    texts_only: bool = False  # not looked for where there are pictures

    @property
    def word(self) -> str:
        """As verdicts name it."""
        return slug(self.title)


@dataclass(frozen=True, slots=True)
class Layout:
    """The words between what changes from prompt to prompt."""

    before: tuple[str | Token, ...]
    after: tuple[str | Token, ...]
    policy: str = "according our"
    last: str = "ONLY THE LAST {role} message"
    bullet: str = " - "
    title_end: str = "."
    text_bullet: str = "- "  # of what is said of a category
    before_turns: str = "\n\n"
    after_turn: str = "\n\n"
    strips: bool = True  # white space around messages
    texts: bool = False  # whether categories are explained unless it is asked for


@dataclass(frozen=True, slots=True)
class Version:
    id: str
    models: tuple[str, ...]  # names of the catalog
    letter: str  # of codes
    categories: tuple[Category, ...]
    layout: Layout  # of the chat template in Meta's release
    pictures: Pictures = "none"
    cookbook: Layout | None = None  # of Meta's code beside the weights, where it differs

    def category(self, name: str) -> Category:
        """By its code, or by its title or name, as a word or not. Raises BadInput."""
        for one in self.categories:
            if name.upper() == one.code or slug(name) in (one.word, slug(one.name)):
                return one
        known = [one.code for one in self.categories] + [one.word for one in self.categories]
        raise BadInput(
            f"{self.id} has no category {name!r:.80}{closest(name, known)}; it has "
            f"{self.categories[0].code} to {self.categories[-1].code}"
        )


_HEADER_3 = (Token("<|begin_of_text|>"), Token("<|start_header_id|>"), "user", Token("<|end_header_id|>"))
_ANSWER_3 = (
    Token("<|eot_id|>"), Token("<|start_header_id|>"), "assistant", Token("<|end_header_id|>"),
)  # fmt: skip
_LAYOUT_1 = Layout(
    ("[INST] ",), (" [/INST]",), last="{role}", bullet="- ", texts=True
)  # fmt: skip
_LAYOUT_2 = Layout(("[INST] ",), (" [/INST]",), title_end=". ")
_LAYOUT_3 = Layout((*_HEADER_3, "\n\n"), (" ", *_ANSWER_3))
_LAYOUT_4 = Layout(
    (Token("<|begin_of_text|>"), Token("<|header_start|>"), "user", Token("<|header_end|>"), "\n\n"),
    (" ", Token("<|eot|>"), Token("<|header_start|>"), "assistant", Token("<|header_end|>")),
    policy="according to our",
    before_turns="\n",
    after_turn="\\n\\n\n\n",  # the release's template spells line ends in a string that takes no escapes
)
_COOKBOOK_3 = replace(_LAYOUT_3, before=(*_HEADER_3, " "), strips=False, title_end=". ")


def _versions() -> tuple[Version, ...]:
    hazards = _categories("mlcommons", "S")
    return (
        Version(
            "llama-guard-1", ("llama-guard-1-7b",), "O", _categories("one", "O"), _LAYOUT_1,
            cookbook=replace(_LAYOUT_1, strips=False, texts=False, text_bullet=" - "),
        ),
        Version(
            "llama-guard-2", ("llama-guard-2-8b",), "S", _categories("two", "S"), _LAYOUT_2,
            cookbook=replace(_LAYOUT_2, strips=False, text_bullet=" - "),
        ),
        Version(
            "llama-guard-3-8b", ("llama-guard-3-8b", "llama-guard-3-8b-int8"), "S", hazards,
            replace(_LAYOUT_3, before=(" ", *_LAYOUT_3.before), after=_ANSWER_3),
            cookbook=_COOKBOOK_3,
        ),
        Version(
            "llama-guard-3-1b", ("llama-guard-3-1b", "llama-guard-3-1b-int4"), "S", hazards[:13], _LAYOUT_3
        ),
        Version(
            "llama-guard-3-11b-vision", ("llama-guard-3-11b-vision",), "S", hazards[:13], _LAYOUT_3, "one"
        ),
        Version(
            "llama-guard-4", ("llama-guard-4-12b",), "S",
            (*hazards[:13], replace(hazards[13], texts_only=True)), _LAYOUT_4, "many",
        ),
    )  # fmt: skip


def _categories(group: str, letter: str) -> tuple[Category, ...]:
    text = (files(__package__) / "categories.toml").read_text(encoding="utf-8")
    rows = tomllib.loads(text)[group]
    return tuple(
        Category(
            f"{letter}{i + 1}", row["title"], row.get("name", row["title"]), row.get("text", ""),
            row.get("space", False),
        )
        for i, row in enumerate(rows)
    )  # fmt: skip


@cache
def versions() -> Mapping[str, Version]:
    """By their ids, in the order of their release."""
    return MappingProxyType({version.id: version for version in _versions()})


def find(name: str) -> Version:
    """By its id, a name of the catalog, or a family: llama-guard-3 is its largest model. Raises BadInput."""
    known = versions()
    for version in known.values():
        if name.lower() in (version.id, *version.models):
            return version
    for version in known.values():
        if version.id.startswith(f"{name.lower()}-"):
            return version
    raise BadInput(
        f"there is no Llama Guard {name!r:.80}, there are {', '.join(known)}{closest(name, list(known))}"
    )
