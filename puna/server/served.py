"""What the server asks of a model and of whoever keeps the models; llm.LLM, llm.models and llm.library fulfil
it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from puna.core import Pooling, Request, SamplingParams, StepResult
from puna.engine.stats import EngineStats
from puna.text.tokenizer import Tokenizer

Message = Mapping[str, Any]


class ResultStream(Protocol):
    """The results of one request as they come; engine.bridge.AsyncStream is one."""

    request: Request

    def __aiter__(self) -> AsyncIterator[StepResult]: ...

    def close(self) -> None: ...  # cancel the request unless it has ended


class Shape(Protocol):
    @property
    def vocab_size(self) -> int: ...  # logits of a row

    @property
    def dim(self) -> int: ...  # numbers of an embedding


class Speed(Protocol):
    """What a model's steps take where nothing but the machine limits them."""

    def least_seconds(self, n_steps: int, n_tokens: int, n_outputs: int, /) -> float | None:
        """Of steps that computed `n_tokens` and logits for `n_outputs`; None where that is not known."""
        ...


class SavedSession(Protocol):
    @property
    def tokens(self) -> Sequence[int]: ...

    @property
    def messages(self) -> Sequence[Message]: ...

    @property
    def n_bytes(self) -> int: ...  # of the file


class ServedModel(Protocol):
    """A model in memory. Every method is safe from any thread, but `submit` needs an event loop."""

    tokenizer: Tokenizer
    context: int  # tokens that a prompt and its answer can have together
    cache_tokens: int  # tokens of all requests together
    default_params: SamplingParams  # of requests that say nothing
    chat_format: str | None  # how prompts are built; None: by the file's template

    @property
    def config(self) -> Shape: ...

    def chat_request(
        self,
        messages: Sequence[Message],
        params: SamplingParams,
        *,
        tools: Sequence[Any] | None = None,
        continue_final_message: bool = False,
        after: Sequence[int] = (),
    ) -> Request:
        """A conversation as the model reads it, or with `after` what goes on from the ids of one;
        `continue_final_message` says that the last message is an answer that goes on.

        Raises BadInput for what it cannot be put to.
        """
        ...

    def embed_request(self, prompt: str | Sequence[int], pooling: Pooling | None = None) -> Request:
        """A text whose embedding is asked for. Raises BadValue for a pooling that is not done."""
        ...

    def infill_request(self, prefix: str, suffix: str, params: SamplingParams) -> Request:
        """What is to be written between two texts. Raises BadValue for a model that cannot."""
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

    def save_session(
        self,
        path: Path,
        prompt: str | Sequence[int] | Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        max_bytes: int | None = None,
        cache_salt: str = "",
    ) -> SavedSession:
        """Write what was computed of a prompt to a file; takes a while. Raises PunaError."""
        ...

    def load_session(self, path: Path, *, max_bytes: int | None = None, cache_salt: str = "") -> SavedSession:
        """Put it back into the cache; takes a while. Raises PunaError."""

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
    context: int | None  # tokens of a prompt and its answer; None: loading decides
    state: str = "loaded"  # or loading, or unloaded
    parent: str | None = None  # of an adapter: the model that it changes
    marks: tuple[str, ...] = ()  # phrases that its licence wants shown: “Built with Llama”
    idle_left_s: float | None = None  # after which it is unloaded if nobody asks for it; None: nothing is due


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the files of a model say of it."""

    format: str  # gguf, or that of a folder: hf, meta
    family: str  # the architecture, as GGUF names it
    n_parameters: int
    quantization: str  # of most of its weights
    sha256: str  # of its file, or of the list of its files
    template: str  # the file's chat template; empty where there is none
    licence: str  # empty where it names none
    capabilities: tuple[str, ...]  # completion, tools, vision, insert, embedding
    metadata: Mapping[str, Any]  # what else the file says, without vocabularies
    default_params: SamplingParams  # of requests that say nothing else


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

    async def facts(self, name: str) -> ModelFacts:
        """What the files of a model say, or of the model of an adapter, in memory or not.

        Raises UnknownModel, and what is wrong with the files.
        """
        ...

    def hold(self, name: str) -> ModelUse | None:
        """A model that is in memory; None where it has to be loaded first. Raises UnknownModel."""
        ...

    async def use(self, name: str) -> ModelUse:
        """A model, loaded if it has to be; who is cancelled while it waits leaves nothing behind.

        Raises UnknownModel, NotPulled, DoesNotFit, WorkFailed where loading fails, or EngineClosed.
        """
        ...

    async def unload(self, name: str) -> bool:
        """Take a model out of memory; False where somebody uses it, so that it stays. Raises UnknownModel."""
        ...

    def let_go(self, name: str) -> None:
        """Take a model out of memory as soon as nobody uses it, unless somebody asks for it before that."""
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


class Library(Protocol):
    """The models of a machine, from which those of a server are taken. Every method may take long."""

    def pull(self, model: str, progress: Callable[[str, int, int | None], None]) -> None:
        """Bring a model of the catalog or of a remote source. `progress` gets what is done, and bytes.

        Raises UnknownModel, BadInput, DownloadFailed or DiskFull, and whatever `progress` raises.
        """
        ...

    def copy(self, source: str, destination: str) -> None:
        """Another name for a model. Raises UnknownModel or BadInput."""
        ...

    def remove(self, model: str) -> None:
        """Forget a name, and the files that no other name stands for. Raises UnknownModel."""
        ...
