"""Where this server and OpenAI's OpenAPI document differ, each with its reason.

`document.py` cuts the document by these tables, `openapi.py` holds every answer to what is left of it, and
docs/api.md shows them (`PYTHONPATH=tests python -m server.conformance.deviations` writes them there): what is
in none of them is a failure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from server.conformance.refusals import REFUSALS

PAGE = Path(__file__).parents[3] / "docs/api.md"
BAR = "\\|"  # one that does not end a cell

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

# schema -> which of its values are here, and why the others are not
VALUES: dict[str, tuple[tuple[str, ...], str]] = {
    "IncludeEnum": (
        ("message.output_text.logprobs", "message.input_image.image_url", "reasoning.encrypted_content"),
        _CALLS_NOTHING,
    ),
    "ServiceTier": (
        ("auto", "default", "flex"), "`priority` is for keys that have one, OpenAI sells the others"
    ),
    "ResponseModalities": (("text",), "models of the family do not speak"),
    "truncation": (("disabled",), "nothing is cut unasked"),
    "TruncationEnum": (("disabled",), "nothing is cut unasked"),
}  # fmt: skip

_ONE_DETAIL = "pictures are encoded as the model was trained on them"
_AS_IT_CAME = "clients send back what they got; it is not looked at, and need not be there"

# schema -> fields of requests whose values are not looked at
UNREAD: dict[str, tuple[tuple[str, ...], str]] = {
    "ChatCompletionRequestAssistantMessage": (("audio", "function_call", "refusal"), _AS_IT_CAME),
    "OutputMessage": (("id", "status", "phase"), _AS_IT_CAME),
    "InputMessage": (("status",), _AS_IT_CAME),
    "EasyInputMessage": (("phase",), _AS_IT_CAME),
    "OutputTextContent": (("annotations", "logprobs"), _AS_IT_CAME),
    "InputImageContent": (("detail",), _ONE_DETAIL),
    "InputImageContentParamAutoParam": (("detail",), _ONE_DETAIL),
    "ChatCompletionRequestMessageContentPartImage.image_url": (("detail",), _ONE_DETAIL),
    "FunctionToolCall": (("id", "status", "namespace"), _AS_IT_CAME),
    "FunctionCallOutputItemParam": (("id", "status"), _AS_IT_CAME),
}

# schema -> fields that requests need not have here, and why
OPTIONAL: dict[str, tuple[tuple[str, ...], str]] = {
    "OutputMessage": (("type",), "as in all other messages"),
    "ChatCompletionMessageToolCall": (("type",), "all calls are of functions"),
    "FunctionTool": (("parameters", "strict"), "as in the chat API"),
    "TextResponseFormatJsonSchema": (("schema",), "as in the chat API"),
}

# field -> what it may be here, how that is said, and why
LOOSER: dict[str, tuple[dict[str, object], str, str]] = {
    "max_output_tokens": (
        {"type": ["integer", "null"], "minimum": 1}, "any number from 1", "15 tokens may be enough"
    ),
}  # fmt: skip

# what else requests may have here, and why
TAKEN = {
    "optional fields of requests": ("may be null", "it is as if they were not there"),
    "fields that are ignored": ("may be anything", "`x-puna-ignored` names them"),
}

# parameters that are not looked at: of `GET /responses/{response_id}`
UNREAD_PARAMETERS = (
    ("starting_after", "include_obfuscation"), "they are of streams, and a stored response comes at once"
)  # fmt: skip

# what answers have, where the document says otherwise, and why
ANSWERS = {
    "optional fields of answers": ("null where they are not set", "as in the document's examples"),
    "`Embedding.embedding`": ("a string where `encoding_format` is base64", "as OpenAI's clients expect"),
    "`ListFilesResponse.first_id`, `.last_id`": ("null where there are no files", "as in other lists"),
    "`CreateCompletionResponse.choices.finish_reason`": ("null in a stream until the end", "as OpenAI's own"),
    "`CreateCompletionResponse.choices.logprobs`": (
        "`token_logprobs` and `top_logprobs` begin with null where `echo` is",
        "nothing comes before the prompt",
    ),
    "`/files/{file_id}/content`": ("the bytes of the file, not JSON of them", "as OpenAI's own"),
}


def rows() -> Iterator[str]:
    """The table of docs/api.md."""
    yield "| OpenAI's document | here | reason |"
    yield "|---|---|---|"
    for union, (kept, reason) in UNIONS.items():
        yield f"| `{union}` | only {_list(kept)} | {reason} |"
    for schema, (fields, reason) in FIELDS.items():
        yield f"| `{schema}` | without {_list(fields)} | {reason} |"
    for schema, (values, reason) in VALUES.items():
        yield f"| `{schema}` | only {_list(values)} | {reason} |"
    for schema, (fields, reason) in UNREAD.items():
        yield f"| `{schema}` | {_list(fields)} may be anything | {reason} |"
    for schema, (fields, reason) in OPTIONAL.items():
        yield f"| `{schema}` | {_list(fields)} may be missing | {reason} |"
    for field, (_, said, reason) in LOOSER.items():
        yield f"| `{field}` | {said} | {reason} |"
    parameters, reason = UNREAD_PARAMETERS
    yield f"| `GET /responses/{{response_id}}` | {_list(parameters)} may be anything | {reason} |"
    for what, found in {**TAKEN, **ANSWERS}.items():
        yield f"| {what} | {found[0]} | {found[1]} |"
    for known in REFUSALS:
        yield f"| what it allows | {known.status}: `{known.shown.replace('|', BAR)}` | {known.reason} |"


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def with_table(page: str) -> str:
    """docs/api.md with the table as it is now."""
    table = "\n".join(rows())
    return re.sub(
        r"(?<=<!-- deviations -->\n).*?(?=<!-- end -->)", lambda _: f"\n{table}\n\n", page, flags=re.DOTALL
    )


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text("utf-8")), "utf-8")
