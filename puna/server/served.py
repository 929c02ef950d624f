"""What the server asks of a model and of whoever keeps the models; llm.LLM and llm.models fulfil it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from puna.core import Request, SamplingParams, StepResult
from puna.engine.stats import EngineStats
from puna.text.tokenizer import Tokenizer

Message = Mapping[str, Any]


class ResultStream(Protocol):
    """The results of one request as they come; engine.bridge.AsyncStream is one."""

    request: Request

    def __aiter__(self) -> AsyncIterator[StepResult]: ...

    def close(self) -> None: ...  # cancel the request unless it has ended


class Vocabulary(Protocol):
    @property
    def vocab_size(self) -> int: ...  # logits of a row


class Speed(Protocol):
    """What a model's steps take where nothing but the machine limits them."""

    def least_seconds(self, n_steps: int, n_tokens: int, n_outputs: int, /) -> float | None:
        """Of steps that computed `n_tokens` and logits for `n_outputs`; None where that is not known."""
        ...


class ServedModel(Protocol):
    """A model in memory. Every method is safe from any thread, but `submit` needs an event loop."""

    tokenizer: Tokenizer
    context: int  # tokens that a prompt and its answer can have together
    cache_tokens: int  # tokens of all requests together
    default_params: SamplingParams  # of requests that say nothing
    chat_format: str | None  # how prompts are built; None: by the file's template

    @property
    def config(self) -> Vocabulary: ...

    def chat_request(
        self, messages: Sequence[Message], params: SamplingParams, *, tools: Sequence[Any] | None = None
    ) -> Request:
        """A conversation as the model reads it. Raises BadInput for what it cannot be put to."""
        ...

    def text_request(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        special: bool = False,
        is_scored: bool = False,
    ) -> Request:
        """A text to continue; with `is_scored`, its own tokens get log-probabilities."""
        ...

    def submit(self, request: Request) -> ResultStream:
        """Start a request. Raises PromptTooLong, BadValue or EngineClosed."""
        ...

    @property
    def is_open(self) -> bool:
        """False once it answers no more requests."""
        ...

    def stats(self) -> EngineStats:
        """Figures of its engine. Waits for nothing."""
        ...

    @property
    def speed(self) -> Speed: ...


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is known of a model without loading it."""

    name: str  # as requests call it
    created: int  # seconds since 1970 that its file was written
    size: int  # bytes of the file
    context: int  # tokens of a prompt and its answer


class Models(Protocol):
    """The models of a server, by the names that requests use."""

    @property
    def default(self) -> str:
        """The name of the model for requests that name none, where an API allows that."""
        ...

    def cards(self) -> list[ModelCard]: ...

    def loaded(self) -> Mapping[str, ServedModel]:
        """Those in memory, for their figures: nothing keeps them there."""
        ...

    async def use(self, name: str) -> ModelUse:
        """A model, loaded if it has to be. Raises UnknownModel, NotPulled or DoesNotFit."""
        ...


class ModelUse(Protocol):
    """A model that stays loaded until this is left."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> ServedModel: ...

    def __enter__(self) -> ServedModel: ...

    def __exit__(self, *exc: object) -> None: ...
