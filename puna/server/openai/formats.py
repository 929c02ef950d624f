"""response_format: what an answer must look like. OpenAI's forms, and grammars for what JSON cannot say."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from puna.engine.grammar import Grammar
from puna.server.openai.fields import Body
from puna.server.served import ServedModel
from puna.server.structured import compiled


class PlainText(Body):
    type: Literal["text"]

    def grammar_for(self, model: ServedModel) -> Grammar | None:
        return None


class JsonObject(Body):
    type: Literal["json_object"]

    def grammar_for(self, model: ServedModel) -> Grammar | None:
        return compiled(model, "json_object", None)


class Schema(Body):
    harmless: ClassVar[tuple[str, ...]] = ("description",)
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: Annotated[dict[str, Any] | bool, Field(alias="schema")] = True
    strict: bool | None = None


class JsonSchema(Body):
    """Constrained whether `strict` or not: an answer that only tries would help nobody."""

    type: Literal["json_schema"]
    json_schema: Schema

    def grammar_for(self, model: ServedModel) -> Grammar | None:
        return compiled(model, "json_schema", self.json_schema.schema_)


class Regex(Body):
    type: Literal["regex"]
    regex: str

    def grammar_for(self, model: ServedModel) -> Grammar | None:
        return compiled(model, "regex", self.regex)


class Lark(Body):
    type: Literal["lark"]
    grammar: str

    def grammar_for(self, model: ServedModel) -> Grammar | None:
        return compiled(model, "lark", self.grammar)


class Choice(Body):
    type: Literal["choice"]
    choices: Annotated[list[str], Field(min_length=1)]

    def grammar_for(self, model: ServedModel) -> Grammar | None:
        return compiled(model, "choice", self.choices)


ResponseFormat = Annotated[
    PlainText | JsonObject | JsonSchema | Regex | Lark | Choice, Field(discriminator="type")
]
