"""What the server asks of a model and of whoever keeps the models; llm.LLM and llm.models fulfil it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from puna.core import Request, SamplingParams, StepResult
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


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is known of a model without loading it."""

    name: str  # as requests call it
    created: int  # seconds since 1970 that its file was written
    size: int  # bytes of the file
    context: int | None  # tokens of a prompt and its answer; None: loading decides
    state: str = "loaded"  # or loading, or unloaded
    parent: str | None = None  # of an adapter: the model that it changes


class Models(Protocol):
    """The models of a server, by the names that requests use."""

    @property
    def default(self) -> str:
        """The name of the model for requests that name none, where an API allows that."""
        ...

    def cards(self) -> list[ModelCard]: ...

    def hold(self, name: str) -> ModelUse | None:
        """A model that is in memory; None where it has to be loaded first. Raises UnknownModel."""
        ...

    async def use(self, name: str) -> ModelUse:
        """A model, loaded if it has to be; who is cancelled while it waits leaves nothing behind.

        Raises UnknownModel, NotPulled, DoesNotFit, WorkFailed where loading fails, or EngineClosed.
        """
        ...

    async def load_adapter(self, base: str | None, name: str, path: str) -> None:
        """Serve a model with an adapter of a path under a name of its own, too.

        Without `base` the adapter belongs to the only model there is. Raises BadInput, WorkFailed or
        DoesNotFit.
        """
        ...

    async def unload_adapter(self, name: str) -> None:
        """No new request gets it; those that have it go on. Raises UnknownModel."""
        ...

    def start(self) -> None:
        """The event loop runs."""
        ...

    async def stop(self) -> None:
        """It is about to end: nothing more is loaded."""
        ...


class ModelUse(Protocol):
    """A model that stays loaded until this is left."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> ServedModel: ...

    def __enter__(self) -> ServedModel: ...

    def __exit__(self, *exc: object) -> None: ...
