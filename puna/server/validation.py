"""What is wrong with a request, as one sentence with the field, what was expected and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

from puna.server.errors import ApiError

_MOST = 80  # characters shown of a value
# pydantic names the form that it tried, which is no field: of an item in a list, or of one of these fields
_FORMS = frozenset(
    {
        "system", "developer", "user", "assistant", "tool", "text", "image_url", "refusal", "image",
        "tool_use", "tool_result", "thinking", "redacted_thinking", "base64", "url", "auto", "any", "none",
        "function", "json_schema", "json_object", "regex", "lark", "choice", "message", "function_call",
        "function_call_output", "item_reference", "input_text", "input_image", "output_text",
    }
)  # fmt: skip
_WITH_FORMS = ("source", "tool_choice", "response_format")


def explained(error: RequestValidationError) -> ApiError:
    """The first of the errors, or the deepest one where a value fits none of several forms."""
    errors = [item for item in error.errors() if item["type"] != "model_attributes_type"] or error.errors()
    worst = max(errors, key=lambda item: (item["type"] == "unknown_field", len(item["loc"])))
    if worst["type"] == "json_invalid":
        at = worst["loc"][-1]
        return ApiError(400, f"the body must be JSON, it is not at character {at}: {worst['ctx']['error']}")
    param = _path(worst["loc"])
    field = worst.get("ctx", {}).get("field")  # of our own checks, whose messages are whole
    if field is not None:
        param = f"{param}.{field}" if param else str(field)
        code = "unknown_parameter" if worst["type"] == "unknown_field" else "invalid_value"
        return ApiError(400, str(worst["msg"]), param=param, code=code)
    if worst["type"] == "missing":
        return ApiError(
            400, f"{param or 'the body'} is missing", param=param or None, code="missing_required_parameter"
        )
    found = worst.get("input")
    text = _shown(found)
    return ApiError(
        400, f"{param or 'the body'}: {worst['msg']}, found {text}", param=param or None, code="invalid_value"
    )


def _path(location: Sequence[Any]) -> str:
    """messages[0].content; names of the forms that were tried are not part of it."""
    path, last = "", None
    for step in location[1:] if location and location[0] in ("body", "query", "path") else location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif _is_field(step) and not (step in _FORMS and (isinstance(last, int) or last in _WITH_FORMS)):
            path += f".{step}" if path else step
        last = step
    return path


def _is_field(step: str) -> bool:
    """Names of types stand in locations as well."""
    return step.isidentifier() and not step[0].isupper() and step not in ("str", "int", "float", "bool")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST else f"{text[:_MOST]}…"
