"""What requests of Ollama's API share: the model's name, options, formats; each checked, none dropped."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from puna.core import Request, SamplingParams
from puna.engine.grammar import Grammar
from puna.server.errors import bad
from puna.server.openai.fields import Body
from puna.server.served import ServedModel
from puna.server.structured import Kind, compiled

_DURATION = r"^-?([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$|^-?[0-9]+$"  # Go's time.ParseDuration, and seconds
_WINDOW = 64  # Ollama's repeat_last_n
_ALL = 2**31 - 1  # more tokens than any context has

KeepAlive = float | Annotated[str, Field(pattern=_DURATION)]
Think = bool | Literal["low", "medium", "high"]
Format = Literal["", "json"] | dict[str, Any]

# options that Ollama has and Puna does not, with the value that leaves each of them off
OFF: Mapping[str, Any] = {
    "mirostat": 0, "tfs_z": 1, "penalize_newline": True, "vocab_only": False, "embedding_only": False,
    "logits_all": False,
}  # fmt: skip


class Options(Body):
    """How to sample. Those that change no number of an answer are harmless: the server is loaded already."""

    harmless: ClassVar[tuple[str, ...]] = (
        "numa", "num_batch", "num_gpu", "main_gpu", "low_vram", "use_mmap", "use_mlock", "num_thread",
        "f16_kv", "num_keep", "mirostat_tau", "mirostat_eta",
    )  # fmt: skip

    num_predict: Annotated[int, Field(ge=-2)] | None = None
    num_ctx: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: list[Annotated[str, Field(min_length=1)]] | None = None
    repeat_penalty: Annotated[float, Field(gt=0)] | None = None
    repeat_last_n: Annotated[int, Field(ge=-1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None

    mirostat: int | None = None
    tfs_z: float | None = None
    penalize_newline: bool | None = None
    vocab_only: bool | None = None
    embedding_only: bool | None = None
    logits_all: bool | None = None

    @model_validator(mode="after")
    def _refuse_unsupported(self) -> Options:
        for name, off in OFF.items():
            found = getattr(self, name)
            if found not in (None, off):
                raise PydanticCustomError(
                    "unsupported",
                    "the option {name} is not supported, only off ({off}), found {found}; take it out",
                    {"name": name, "off": repr(off), "found": repr(found), "field": name},
                )
        return self

    @field_validator("num_predict")
    @classmethod
    def _not_none(cls, value: int | None) -> int | None:
        if value == 0:
            raise PydanticCustomError(
                "range",
                "num_predict must be 1 or more, or -1 for no limit, found 0; ask for some tokens",
                {"field": "num_predict"},
            )
        return value

    def params(self, defaults: SamplingParams, logprobs: int | None) -> SamplingParams:
        """What the engine samples by. Raises BadValue."""
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p or (1e-9 if self.top_p == 0 else None),  # llama.cpp's 0: the likeliest token
            "top_k": None if self.top_k is None else max(0, self.top_k),
            "min_p": self.min_p,
            "typical_p": self.typical_p,
            "seed": None if self.seed in (None, -1) else self.seed,  # -1: a random one
            "stop": tuple(self.stop or ()),
            "repetition_penalty": self.repeat_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "penalty_window": self._window(),
            "max_tokens": self.num_predict if self.num_predict and self.num_predict > 0 else None,
            "logprobs": logprobs,
        }
        chosen = {name: getattr(defaults, name) for name in SamplingParams.__dataclass_fields__}
        chosen |= {name: value for name, value in given.items() if value is not None}
        if isinstance(chosen["seed"], int):
            chosen["seed"] %= 2**64
        return SamplingParams(**chosen)

    def _window(self) -> int | None:
        """Tokens that penalties look at: -1 is all, and 64 where nobody says."""
        if self.repeat_last_n is not None:
            return _ALL if self.repeat_last_n < 0 else self.repeat_last_n
        penalties = (self.repeat_penalty, self.presence_penalty, self.frequency_penalty)
        return None if all(value is None for value in penalties) else _WINDOW


def is_let_go(keep_alive: KeepAlive | None) -> bool:
    """Whether the model is to leave the memory; any other time leaves it to the server."""
    return keep_alive is not None and re.search("[1-9]", str(keep_alive)) is None


class Named(Body):
    """A request that names a model; the tag "latest" is the name without one."""

    model: Annotated[str, Field(min_length=1)]

    @property
    def name(self) -> str:
        return self.model.removesuffix(":latest")


class Asked(Named):
    """What generate and chat share."""

    harmless: ClassVar[tuple[str, ...]] = ("truncate", "shift")  # nothing is ever cut or shifted out

    stream: bool = True
    keep_alive: KeepAlive | None = None  # see is_let_go
    format: Format | None = None
    options: Options | None = None
    think: Think | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def check(self) -> None:
        """Raise ApiError for what is of the right form and cannot be had."""
        if self.think:
            raise bad("think", f"{self.name} does not support thinking; leave think out, or set it to false")
        if self.top_logprobs is not None and not self.logprobs:
            raise bad("top_logprobs", "top_logprobs needs logprobs: true, which is not set")

    @property
    def is_held(self) -> bool:
        """Whether the answer is held to JSON."""
        return bool(self.format) or isinstance(self.format, dict)

    def grammar_for(self, model: ServedModel) -> Grammar | None:
        """Raises BadValue and Unsupported."""
        if not self.is_held:
            return None
        kind: Kind = "json_object" if self.format == "json" else "json_schema"
        return compiled(model, kind, self.format)

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        options = self.options or Options()
        return options.params(defaults, (self.top_logprobs or 0) if self.logprobs else None)

    def within_num_ctx(self, model: ServedModel, request: Request) -> Request:
        """The request, whose answer ends where num_ctx does. Raises ApiError."""
        n_ctx = self.options.num_ctx if self.options is not None else None
        if n_ctx is None:
            return request
        if n_ctx > model.context:
            raise bad(
                "options.num_ctx",
                f"num_ctx must be at most {model.context}, the context that this model is loaded with, "
                f"got {n_ctx}",
            )
        n_prompt, n_max = len(request.prompt), request.params.max_tokens
        if n_prompt + (n_max or 1) > n_ctx:
            raise bad(
                "options.num_ctx",
                f"num_ctx must hold the prompt of {n_prompt} tokens and an answer of {n_max or 1}, together "
                f"{n_prompt + (n_max or 1)}, got {n_ctx}; raise it, or shorten the prompt",
                "context_length_exceeded",
            )
        request.params = replace(request.params, max_tokens=n_max or n_ctx - n_prompt)
        return request


def picture(where: str, encoded: str) -> dict[str, Any]:
    """A part of a message. Raises ApiError for what is no base64."""
    try:
        return {"type": "image", "image": b64decode(encoded, validate=True)}
    except ValueError:  # no base64, or no ASCII
        raise bad(where, f"{where} must be images in base64, found {encoded[:40]!r}") from None
