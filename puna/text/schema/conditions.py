"""Keywords that decide by whether something else holds, in the words of anyOf: not, if, dependencies, oneOf.

What is made here allows what the keyword does or less: see negation.py. Schemas in it are those of the
document; whoever copies it copies them too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from puna.text.schema.disjoint import are_disjoint
from puna.text.schema.document import Document, Schema
from puna.text.schema.negation import TYPES, Alternatives, conjunction, other_texts, outside

_HARMLESS = frozenset(("title", "description", "$comment", "default", "examples", "$id"))
_MOST_BRANCHES = 200  # of a oneOf, which are compared with each other
_MOST_OVERLAPS = 500  # of which two are not disjoint, so that one is written without the other


def denied(document: Document, node: Any) -> Schema | None:
    """What fulfils {"not": node}; None where that cannot be said."""
    return False if node is True or node == {} else _any(outside(document, node))


def _any(alternatives: Alternatives) -> dict[str, Any] | None:
    if not alternatives:
        return None
    return alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives}


@dataclass(frozen=True)
class Condition:
    """if, then, else."""

    test: Any
    then: Any = True
    otherwise: Any = True


def conditions_of(node: Mapping[str, Any]) -> Iterator[Condition]:
    """What a node says by if, and by dependencies, which are conditions on a property being there."""
    if "if" in node and ("then" in node or "else" in node):
        yield Condition(node["if"], node.get("then", True), node.get("else", True))
    for key in ("dependencies", "dependentRequired", "dependentSchemas"):
        if isinstance(node.get(key), Mapping):
            for name, wanted in node[key].items():
                then = {"required": wanted} if isinstance(wanted, list | tuple) else wanted
                if then != {"required": []} and then is not True:
                    yield Condition({"type": "object", "required": [name]}, then)


def only_conditions(node: Any) -> list[Condition] | None:
    """The conditions of a node that says nothing else."""
    keys = {"if", "then", "else", "dependencies", "dependentRequired", "dependentSchemas"}
    if not isinstance(node, Mapping) or not set(node) - _HARMLESS or set(node) - keys - _HARMLESS:
        return None
    return list(conditions_of(node))


def decided(document: Document, conditions: Sequence[Condition]) -> list[dict[str, Any]]:
    """Schemas that together fulfil all the conditions.

    Many that ask for the value of one property are one choice between its values.
    """
    by_name: dict[str, list[tuple[Condition, list[str]]]] = {}
    made = []
    for condition in conditions:
        asked = _asks(document, condition.test)
        if asked is None:
            made.append(_decided(document, condition))
        else:
            by_name.setdefault(asked[0], []).append((condition, asked[1]))
    return made + [_by_value(document, name, group) for name, group in by_name.items()]


def _decided(document: Document, condition: Condition) -> dict[str, Any]:
    yes = {"allOf": [condition.test, condition.then]}
    no = outside(document, condition.test)
    other = condition.otherwise
    return {"anyOf": [yes, *(part if other is True else {"allOf": [part, other]} for part in no)]}


def _asks(document: Document, test: Any) -> tuple[str, list[str]] | None:
    """The property, and its texts, where that is all that a test looks at."""
    if not isinstance(test, Mapping):
        return None
    test = document.keywords(test)
    named = test.get("properties")
    if not isinstance(named, Mapping) or len(named) != 1:
        return None
    [(name, part)] = named.items()
    others = {key: value for key, value in test.items() if key not in _HARMLESS | {"properties"}}
    if others not in ({}, {"type": "object"}, {"required": [name]}, {"type": "object", "required": [name]}):
        return None
    if not isinstance(part, Mapping) or set(part) - _HARMLESS - {"const", "enum", "type"}:
        return None
    if part.get("type", "string") != "string" or ("const" in part) == ("enum" in part):
        return None
    texts = [part["const"]] if "const" in part else part["enum"]
    is_plain = isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts)
    return (name, list(texts)) if is_plain and texts else None


def _by_value(document: Document, name: str, group: Sequence[tuple[Condition, list[str]]]) -> dict[str, Any]:
    """A choice between the values of a property, and its being another, being absent, or there being none."""
    by_outcome: dict[tuple[int, ...], list[str]] = {}
    for text in dict.fromkeys(text for _, texts in group for text in texts):
        holding = tuple(i for i, (_, texts) in enumerate(group) if text in texts)
        by_outcome.setdefault(holding, []).append(text)
    options: list[dict[str, Any]] = []
    for holding, texts in by_outcome.items():
        here = {"type": "object", "properties": {name: {"enum": texts}}, "required": [name]}
        options.append(_all(here, (_outcome(c, i in holding) for i, (c, _) in enumerate(group))))
    every = [text for _, texts in group for text in texts]
    not_text = {"type": [kind for kind in TYPES if kind != "string"]}
    other = {"anyOf": [{"type": "string", "pattern": other_texts(every)}, not_text]}
    beside = {"type": "object", "properties": {name: other}, "required": [name]}
    options.append(_all(beside, (_outcome(c, False) for c, _ in group)))
    # A property that is absent fulfils what is said of it; so does what is no object.
    absent = {"type": "object", "properties": {name: False}}
    options.append(_all(absent, (_outcome(c, not _requires(document, c)) for c, _ in group)))
    none = {"type": [kind for kind in TYPES if kind != "object"]}
    options.append(_all(none, (_outcome(c, "type" not in c.test) for c, _ in group)))
    return {"anyOf": options}


def _requires(document: Document, condition: Condition) -> bool:
    return "required" in document.keywords(condition.test)


def _outcome(condition: Condition, holds: bool) -> Any:
    return condition.then if holds else condition.otherwise


def _all(first: dict[str, Any], others: Iterable[Any]) -> dict[str, Any]:
    more = [part for part in others if part is not True and part != {}]
    return {"allOf": [first, *more]} if more else first


def exclusive(document: Document, branches: Sequence[Any]) -> list[Any]:
    """Schemas of which any may hold where of `branches` exactly one must: each without what the others allow.

    Branches that can be shown to be disjoint stay as they are.
    """
    if len(branches) > _MOST_BRANCHES:
        return []
    beside = [
        [j for j, other in enumerate(branches) if i != j and not are_disjoint(document, branch, other)]
        for i, branch in enumerate(branches)
    ]
    if sum(map(len, beside)) > _MOST_OVERLAPS:
        return []
    without = [outside(document, branch) if beside[i] else [] for i, branch in enumerate(branches)]
    made: list[Any] = []
    for branch, others in zip(branches, beside, strict=True):
        if others:
            excluded = conjunction([without[j] for j in others])
            made += [{"allOf": [branch, *excluded]}] if excluded else []
        else:
            made.append(branch)
    return made
