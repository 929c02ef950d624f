"""A JSON schema and what its references mean, of which draft it is, and its keywords as 2020-12 names them.

References lead to places inside the document only; nothing is fetched. Source: JSON Schema, drafts 4 to
2020-12 ($id, $anchor, $ref; validation vocabularies).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from puna.core import BadValue, Unsupported

Schema = Mapping[str, Any] | bool
_ROOT = "https://schema.invalid/"  # what a document without a name is called
_MOST_STEPS = 80_000  # two seconds
_DATA = frozenset(("enum", "const", "default", "examples"))  # hold values, in which nothing is a schema
# Keywords that came later: validators of the draft do not look at them.
_LATER = {
    4: frozenset(("const", "contains", "propertyNames", "if", "then", "else")),
    6: frozenset(("if", "then", "else")),
}
_IN_2019 = frozenset((
    "prefixItems", "dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties",
    "minContains", "maxContains", "$recursiveRef", "$dynamicRef",
))  # fmt: skip


class Document:
    """A whole schema. Nodes are told apart by identity: it must stay as it is while it is looked at."""

    def __init__(self, root: Schema) -> None:
        self.root = root
        self.draft = _draft(root)
        self.n_steps = 0  # nodes looked at so far, many of them several times
        self.n_proofs = 0  # comparisons of two schemas so far (disjoint.py)
        self._checked: set[int] = set()
        self._bases: dict[int, str] = {}
        self._named: dict[str, Any] = {_ROOT: root}
        self._dynamic: dict[str, list[Any]] = {}
        self._scan()

    def keywords(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        """A node without what its draft does not know, with lists of items under their newest names.

        Beside $ref, drafts up to 7 look at nothing. Every keyword left is one of 2020-12, and so are those of
        nodes that are not of the document. Raises BadValue for a keyword with a value that it cannot have.
        """
        self.n_steps += 1
        if self.n_steps > _MOST_STEPS:
            raise BadValue(
                "a JSON schema must not have so many combinations of not, if, oneOf and references inside "
                "each other; simplify it"
            )
        if id(node) not in self._checked:
            _check_shape(node)
        if id(node) not in self._bases:
            return node
        self._checked.add(id(node))
        if self.draft <= 7 and isinstance(node.get("$ref"), str):
            return {"$ref": node["$ref"]}
        dropped = _LATER.get(self.draft, frozenset[str]())
        if self.draft <= 7:
            dropped |= _IN_2019
        elif self.draft == 2019:
            dropped = frozenset(("prefixItems",))
        known = {key: value for key, value in node.items() if key not in dropped}
        if isinstance(known.get("items"), list | tuple) and "prefixItems" not in known:
            known["prefixItems"] = known.pop("items")
            if "additionalItems" in known:
                known["items"] = known.pop("additionalItems")
        elif "prefixItems" not in known:
            known.pop("additionalItems", None)
        return known

    def target(self, node: Mapping[str, Any], keyword: str) -> Any:
        """Where a reference of a node leads to. Raises Unsupported for another document, BadValue for a place
        that is not there.
        """
        reference = node[keyword]
        if not isinstance(reference, str):
            raise BadValue(f"{keyword} must be a text, found {reference!r:.80}")
        if keyword == "$recursiveRef":
            reference = "#"
        if keyword == "$dynamicRef" and (found := self._dynamic.get(urldefrag(reference)[1])):
            if len(found) > 1:
                raise Unsupported(f"answers cannot be held to $dynamicRef with a choice, found {reference!r}")
            return found[0]
        uri, fragment = urldefrag(_joined(self._bases.get(id(node), _ROOT), reference))
        if uri not in self._named:
            raise Unsupported(
                f"documents elsewhere are not fetched, found a reference to {reference!r:.200}; put it "
                "into $defs"
            )
        if not fragment:
            return self._named[uri]
        if not fragment.startswith("/"):
            return self._anchor(f"{uri}#{fragment}", reference)
        return _at(self._named[uri], unquote(fragment), reference)

    def _anchor(self, name: str, reference: str) -> Any:
        if name not in self._named:
            raise BadValue(f"$ref must lead to a part of the schema, found {reference!r:.80}")
        return self._named[name]

    def _scan(self) -> None:
        """Note what every node is named, and what references in it are relative to."""
        pending: list[tuple[Any, str]] = [(self.root, _ROOT)]
        while pending:
            node, base = pending.pop()
            if isinstance(node, list | tuple):
                pending += [(item, base) for item in node]
            if not isinstance(node, Mapping):
                continue
            base = self._name(node, base)
            self._bases[id(node)] = base
            pending += [(value, base) for key, value in node.items() if key not in _DATA]

    def _name(self, node: Mapping[str, Any], base: str) -> str:
        """Note the names of a node; returns the base of what is in it."""
        given = node.get("$id", node.get("id") if self.draft == 4 else None)
        if isinstance(given, str) and not (self.draft <= 7 and "$ref" in node):
            uri = _joined(base, given)
            plain, fragment = urldefrag(uri)
            if fragment:
                self._named.setdefault(uri, node)
            else:
                base = plain
                self._named.setdefault(plain, node)
        for key in ("$anchor", "$dynamicAnchor"):
            if isinstance(node.get(key), str):
                self._named.setdefault(f"{base}#{node[key]}", node)
        if isinstance(node.get("$dynamicAnchor"), str):
            self._dynamic.setdefault(node["$dynamicAnchor"], []).append(node)
        return base


_SHAPES: dict[str, tuple[str, type | UnionType]] = {
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems", "enum"), ("a list", list | tuple)),
    **dict.fromkeys(
        ("properties", "patternProperties", "dependentRequired", "dependentSchemas", "dependencies"),
        ("an object", Mapping),
    ),
    **dict.fromkeys(("pattern", "format", "$ref", "$dynamicRef", "$recursiveRef"), ("a text", str)),
    **dict.fromkeys(("minimum", "maximum", "multipleOf"), ("a number", int | float)),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), ("a number", int | float)),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), ("a whole number", int | float)),
    **dict.fromkeys(("minProperties", "maxProperties"), ("a whole number", int | float)),
    "required": ("a list", list | tuple),
    "type": ("a name or a list of them", str | list | tuple),
    "uniqueItems": ("true or false", bool),
    **dict.fromkeys(
        ("not", "if", "then", "else", "contains", "propertyNames", "unevaluatedProperties",
         "additionalProperties", "additionalItems"),
        ("a schema", Mapping | bool),
    ),
    "items": ("a schema or a list of them", Mapping | bool | list | tuple),
}  # fmt: skip


def _check_shape(node: Mapping[str, Any]) -> None:
    for key, (wanted, kinds) in _SHAPES.items():
        value = node.get(key)
        if key in node and not isinstance(value, kinds):
            raise BadValue(f"{key} must be {wanted}, found {value!r:.80}")
        if (
            wanted == "a whole number"
            and value is not None
            and (isinstance(value, bool) or value != int(value))
        ):
            raise BadValue(f"{key} must be {wanted}, found {value!r:.80}")
        texts = value if key in ("required", "type") and isinstance(value, list | tuple) else ()
        if not all(isinstance(text, str) for text in texts):
            raise BadValue(f"{key} must be a list of names, found {value!r:.80}")


def _draft(root: Schema) -> int:
    """4, 6, 7, 2019 or 2020, as validators choose one by $schema: the newest where it names none."""
    named = root.get("$schema") if isinstance(root, Mapping) else None
    text = str(named).rstrip("#")
    if "draft-03/" in text:
        raise Unsupported(
            f"JSON schemas must be of draft 4 or later, found {text!r:.80}; bring it up to date"
        )
    known = {
        "http://json-schema.org/draft-04/schema": 4, "http://json-schema.org/draft-06/schema": 6,
        "http://json-schema.org/draft-07/schema": 7,
        "https://json-schema.org/draft/2019-09/schema": 2019,
    }  # fmt: skip
    return known.get(text, 2020)


def _joined(base: str, reference: str) -> str:
    if reference.startswith("#"):
        return urldefrag(base)[0] + reference
    try:
        return urljoin(base, reference)
    except ValueError:
        raise BadValue(f"references must be URIs, found {reference!r:.80}") from None


def _at(node: Any, pointer: str, reference: str) -> Any:
    """What a JSON pointer leads to."""
    for part in _parts(pointer):
        if isinstance(node, Mapping) and part in node:
            node = node[part]
        elif isinstance(node, list | tuple) and part.isdecimal() and int(part) < len(node):
            node = node[int(part)]
        else:
            raise BadValue(f"$ref must lead to a part of the schema, found {reference!r:.80}")
    return node


def _parts(pointer: str) -> Iterator[str]:
    for part in pointer.split("/")[1:]:
        yield part.replace("~1", "/").replace("~0", "~")
