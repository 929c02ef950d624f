"""What no generator guesses of a request, and what would take long: ids that exist, short and few answers."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from llm.tiny_vision import png

_OBJECT = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
_NAME = {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}
_TOOL = {"enum": ["f", "g"]}
_MODEL = {"enum": ["tiny"]}
_IMAGE = {"enum": ["input_image"]}
_DETAIL = {"enum": ["low", "high", "auto"]}


def narrowed(picture: str, file: str, response: str, conversation: str) -> dict[str, Any]:
    """Schemas for document.cut, with the ids of things that are there."""
    image = {"enum": ["data:image/png;base64," + b64encode(png()).decode()]}
    short, counts = _maybe(_whole_number(1, 16)), _maybe(_whole_number(1, 2))
    texts = {**_list(_text(1)), "maxItems": 4}
    ids = {**_list(_whole_number(0, 255)), "maxItems": 20}
    prompts = {"anyOf": [_text(), texts, ids, {**_list(ids), "maxItems": 2}]}
    biases = {"type": "object", "propertyNames": {"pattern": "^[0-9]{1,2}$"},
              "additionalProperties": _whole_number(-100, 100)}  # fmt: skip
    held = _object(name=_NAME, schema={"enum": [_OBJECT]}, strict={"type": "boolean"})
    endpoints = [f"/v1/{name}" for name in ("chat/completions", "completions", "responses", "embeddings")]
    return {
        "limit": _whole_number(1, 100), "purpose": {"enum": ["batch", "vision", "user_data"]},
        "model": _MODEL, "ModelIdsShared": _MODEL, "ModelIdsResponses": _MODEL,
        "input_file_id": {"enum": [file]}, "endpoint": {"enum": endpoints},
        "n": counts, "max_tokens": short, "max_completion_tokens": short, "max_output_tokens": short,
        "logit_bias": biases, "prompt": prompts, "CreateEmbeddingRequest.input": prompts,
        "StopConfiguration": {"anyOf": [_text(1), texts, {"type": "null"}]},
        "Metadata": {
            "type": "object", "propertyNames": _text(0, 64), "additionalProperties": _text(0, 512),
            "maxProperties": 16,
        },
        "ChatCompletionRequestAssistantMessage.content": _text(),
        "FunctionParameters": {"enum": [_OBJECT]}, "FunctionTool.parameters": {"enum": [_OBJECT, None]},
        "FunctionObject.name": _TOOL, "FunctionTool.name": _TOOL, "ToolChoiceFunction.name": _TOOL,
        "ChatCompletionNamedToolChoice.function": _object(name=_TOOL),
        "ChatCompletionAllowedTools.tools": _list(
            _object(type={"enum": ["function"]}, function=_object(name=_TOOL))
        ),
        "ToolChoiceAllowed.tools": _list(_object(type={"enum": ["function"]}, name=_TOOL)),
        "ResponseFormatJsonSchema.json_schema": held,
        "ResponseFormatJsonSchemaSchema": {"enum": [_OBJECT]}, "TextResponseFormatJsonSchema.name": _NAME,
        "ChatCompletionRequestMessageContentPartImage.image_url": _object(url=image),
        "InputImageContent": _object(type=_IMAGE, image_url=image, detail=_DETAIL),
        "InputImageContentParamAutoParam": _object(type=_IMAGE, file_id={"enum": [picture]}, detail=_DETAIL),
        "previous_response_id": {"enum": [response, None]},
        "ConversationParam": {"enum": [conversation, {"id": conversation}]},
    }  # fmt: skip


def _text(least: int = 0, most: int = 10_000) -> dict[str, Any]:
    return {"type": "string", "minLength": least, "maxLength": most}


def _whole_number(least: int, most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most}


def _maybe(schema: Any) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


def _object(**properties: Any) -> dict[str, Any]:
    """All of them needed, no others."""
    needed = [*properties]
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}
