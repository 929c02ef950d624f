"""What requests share: how they are checked, and the sampling fields of OpenAI's API and of other engines.

Types are strict, as OpenAI's are: "5" is no number. A field that OpenAI does not know is an error that names
the closest one, since a misspelt parameter that does nothing is worse; one that OpenAI knows and that means
nothing to a model of one's own is ignored, and named in the header `x-puna-ignored`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, cast

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError

from puna.core import SamplingParams, closest
from puna.server.tiers import Asked


def _failing_fast(schema: Any) -> Any:
    """A core schema (pydantic_core.core_schema), all lists in it with fail_fast."""
    if isinstance(schema, list | tuple):
        return type(schema)(_failing_fast(item) for item in schema)
    if not isinstance(schema, dict):
        return schema
    found = {name: _failing_fast(value) for name, value in schema.items()}
    return {**found, "fail_fast": True} if found.get("type") == "list" else found


class Body(BaseModel):
    """A JSON object of a request; other fields than those declared are errors."""

    model_config = ConfigDict(strict=True, extra="forbid")

    # fields that OpenAI knows and that change nothing here
    harmless: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Lists are read up to the first item that is wrong: a million errors are a gigabyte."""
        return cast(CoreSchema, _failing_fast(handler(source)))

    @model_validator(mode="wrap")
    @classmethod
    def _name_unknown(cls, data: Any, handler: Any) -> Any:
        if not isinstance(data, Mapping):
            return handler(data)
        known = [field.alias or name for name, field in cls.model_fields.items()]
        unknown = [name for name in data if name not in known and name not in cls.harmless]
        if unknown:
            raise PydanticCustomError(
                "unknown_field",
                "there is no field {name}{hint}; take it out",
                {"name": repr(unknown[0]), "hint": closest(str(unknown[0]), known), "field": unknown[0]},
            )
        return handler({name: value for name, value in data.items() if name not in cls.harmless})


class StreamOptions(Body):
    harmless: ClassVar[tuple[str, ...]] = ("include_obfuscation",)
    include_usage: bool | None = None


class Sampler(Body):
    """How tokens are chosen, by OpenAI's fields and those of other engines (vLLM, llama.cpp)."""

    harmless: ClassVar[tuple[str, ...]] = (
        "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    )  # fmt: skip

    model: Annotated[str, Field(min_length=1)]
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    service_tier: Asked | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None  # as vLLM has it

    def params(
        self, defaults: SamplingParams, *, logprobs: int | None, max_tokens: int | None
    ) -> SamplingParams:
        """What the engine samples by. Raises BadValue."""
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p or (1e-9 if self.top_p == 0 else None),  # OpenAI's 0: the likeliest token
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logit_bias": None if self.logit_bias is None else token_ids(self.logit_bias),
            "seed": None if self.seed is None else self.seed % 2**64,
            "top_k": max(0, self.top_k) if self.top_k is not None else None,  # vLLM's -1: off
            "min_p": self.min_p,
            "typical_p": self.typical_p,
            "repetition_penalty": self.repetition_penalty,
            "min_tokens": self.min_tokens,
            "ignore_end": self.ignore_eos,
            "stop": (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            "stop_ids": tuple(self.stop_token_ids or ()),
            "max_tokens": max_tokens,
            "logprobs": logprobs,
        }
        return changed(defaults, given)


class Sampling(Sampler):
    """What /v1/chat/completions and /v1/completions share beyond that."""

    harmless: ClassVar[tuple[str, ...]] = (*Sampler.harmless, "metadata", "store")

    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> Sampling:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "needs",
                "stream_options need stream: true, which is not set; set it, or take them out",
                {"field": "stream_options"},
            )
        return self

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def changed(defaults: SamplingParams, given: Mapping[str, Any]) -> SamplingParams:
    """The defaults with what is given in their place; None is not given. Raises BadValue."""
    chosen = {name: value for name, value in given.items() if value is not None}
    if "max_tokens" in chosen:  # nobody asked for a default of more
        chosen.setdefault("min_tokens", min(defaults.min_tokens, chosen["max_tokens"]))
    return replace(defaults, **chosen)


def token_ids(biases: Mapping[str, float]) -> dict[int, float]:
    """OpenAI's keys are token ids as text. Raises BadValue."""
    from puna.core import BadValue

    try:
        return {int(token): bias for token, bias in biases.items()}
    except ValueError:
        wrong = next(token for token in biases if not token.lstrip("-").isdecimal())
        raise BadValue(f"keys of logit_bias must be token ids, got {wrong!r}") from None


def ignored(body: Body, raw: Mapping[str, Any]) -> dict[str, str]:
    """The header that names fields which did nothing."""
    names = sorted(_names(body, raw))
    return {"x-puna-ignored": ", ".join(names)} if names else {}


def _names(body: Body, raw: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Of objects inside of it as well, such as text.verbosity; messages and items have what clients got."""
    for name, value in raw.items():
        inner = getattr(body, name, None)
        if name in body.harmless and value is not None:
            yield where + name
        elif isinstance(inner, Body) and isinstance(value, Mapping):
            yield from _names(inner, value, f"{where}{name}.")
