"""LLM: a loaded model that answers."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Never, Self, TypeVar, overload

from puna.core import (
    BadInput,
    BadValue,
    Completion,
    Image,
    PlacedImage,
    PromptTooLong,
    Request,
    SamplingParams,
    TokenLogprob,
    UnknownOption,
    closest,
)
from puna.llm.config import DEFAULT_PARAMS, BackendName, CacheType, LLMConfig, WeightsName, sampling_params
from puna.llm.prompts import Batch, Message, Prompt, has_parts, is_batch, is_conversation, items

if TYPE_CHECKING:
    from puna.engine.bridge import AsyncStream, EngineThread, Stream
    from puna.engine.stats import EngineStats
    from puna.llm.answer import Answer, AsyncAnswer
    from puna.llm.load import Progress
    from puna.llm.speed import Speed
    from puna.model.config import ModelConfig
    from puna.text.chat import Tools
    from puna.text.tokenizer import Tokenizer

_Begun = TypeVar("_Begun")

_SCORING = SamplingParams(temperature=0, max_tokens=1)


class LLM:
    """A model in memory and the engine that runs it.

    >>> with LLM("smollm2") as llm:
    ...     print(llm.chat("Why is the sky blue?").text)

    `model` is a name of the store, a .gguf file, the folder of a checkpoint, or a source; it must be on this
    machine. The other arguments are the fields of LLMConfig. Methods may be called from several threads and
    event loops at once: all requests share the steps of one engine, and none changes another one's answer.

    Every method takes sampling options (the fields of SamplingParams) by name, or a SamplingParams as
    `params`, whose fields these override. Without `params`, temperature is 0.6 and top_p 0.9; temperature 0
    is greedy.

    Raises NotPulled, UnknownModel, BadFile or Unsupported for the model; BadValue, UnknownOption, or
    DoesNotFit where weights and cache need more memory than there is.
    """

    config: ModelConfig  # what the file says of the model
    tokenizer: Tokenizer
    context: int  # tokens that a prompt and its answer can have together
    cache_tokens: int  # tokens that the cache has room for, all requests together
    threads: int
    load_seconds: float
    speed: Speed  # what steps take at the machine's limit
    path: Path
    default_params = DEFAULT_PARAMS

    def __init__(
        self,
        model: str | os.PathLike[str] = "smollm2",
        *,
        context: int | None = LLMConfig.context,
        cache_type: CacheType = LLMConfig.cache_type,
        threads: int | None = LLMConfig.threads,
        batch: int | None = LLMConfig.batch,
        seed: int | None = LLMConfig.seed,
        speculate: bool = LLMConfig.speculate,
        backend: BackendName = LLMConfig.backend,
        device: str = LLMConfig.device,
        mmproj: str | os.PathLike[str] | None = LLMConfig.mmproj,
        chat_format: str | None = LLMConfig.chat_format,
        weights: WeightsName = LLMConfig.weights,
        tensor_parallel: int = LLMConfig.tensor_parallel,
        progress: Progress | None = None,
        **unknown: Never,
    ) -> None:
        known = [field.name for field in fields(LLMConfig)]
        for name in unknown:
            raise UnknownOption(f"LLM has no option {name!r}{closest(name, known)}")
        asked = LLMConfig(
            context, cache_type, threads, batch, seed, speculate, backend, device, mmproj, chat_format,
            weights, tensor_parallel,
        )  # fmt: skip
        from puna.llm.load import chat_format_of, load
        from puna.weights import store

        self.path = store.resolve(os.fspath(model))
        loaded = load(self.path, asked, progress)
        self.config, self.tokenizer = loaded.config, loaded.tokenizer
        self.context, self.cache_tokens = loaded.room.context, loaded.room.cache_tokens
        self.threads, self.load_seconds, self.speed = loaded.threads, loaded.seconds, loaded.speed
        self._engine: EngineThread = loaded.engine
        self.chat_format = chat_format_of(os.fspath(model), self.tokenizer, chat_format)
        self._seeds = count(seed) if seed is not None else None
        self._finalizer = weakref.finalize(self, loaded.engine.close)

    @property
    def is_open(self) -> bool:
        """False once it answers no more requests: it was closed, or its engine broke."""
        return self._engine.is_open

    def close(self) -> None:
        """Cancel what runs and free the memory. A second call does nothing."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @overload
    def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, *, special: bool = False, **options: Any
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: Batch,
        params: SamplingParams | None = None,
        *,
        special: bool = False,
        **options: Any,
    ) -> list[Completion]: ...

    def generate(
        self,
        prompt: Prompt | Batch,
        params: SamplingParams | None = None,
        *,
        special: bool = False,
        **options: Any,
    ) -> Completion | list[Completion]:
        """Continue a text, or token ids, as they are: no chat template.

        A list of texts or of ids runs as one batch and gives a list in its order. With `special`, names of
        control tokens in texts become those tokens. The answer goes on to the model's end token, a stop,
        max_tokens, or the end of the context (finish_reason "length").

        Each prompt of a batch gets a seed of its own unless one is given.

        Raises PromptTooLong, BadValue, UnknownOption or EngineClosed.
        """
        requests = [
            self.text_request(item, self._params(params, options), special=special) for item in items(prompt)
        ]
        answers = self._run(requests)
        return answers if is_batch(prompt) else answers[0]

    def chat(
        self,
        messages: str | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Tools | None = None,
        **options: Any,
    ) -> Completion:
        """Answer a conversation as the file's chat template puts it to the model; a string is one message.

        Nothing that a message says becomes a control token. The beginning that a conversation has in common
        with earlier ones comes out of the cache (`n_cached` of the result). Raises BadInput for a model
        without a template and for messages that it refuses, and what generate() raises. `tools` are
        definitions as OpenAI has them, or names of those that the model knows (Llama 3.1: brave_search, …);
        results come as messages of the role "tool".

        Content may be a list of parts, {"type": "text", "text"} and pictures {"type": "image", "image": …}: a
        path, the bytes of a JPEG, PNG, WebP or GIF file, a picture of Pillow, or one of image(); or OpenAI's
        {"type": "image_url", "image_url": {"url": "data:image/…;base64,…"}}. Nothing is fetched, but
        a path is opened: of messages of strangers, let only texts and image_urls through.
        """
        return self._answer(self.chat_request(messages, self._params(params, options), tools=tools)).result()

    def stream(
        self,
        prompt: Prompt | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Tools | None = None,
        special: bool = False,
        **options: Any,
    ) -> Answer:
        """The same as an iterator over pieces of text: messages are answered as in chat(), texts and ids
        continued as in generate().

        >>> for text in llm.stream([{"role": "user", "content": "Tell me a story."}]):
        ...     print(text, end="", flush=True)
        """
        return self._answer(self._request(prompt, self._params(params, options), tools, special))

    async def agenerate(
        self, prompt: Prompt, params: SamplingParams | None = None, *, special: bool = False, **options: Any
    ) -> Completion:
        """generate() of one prompt for an event loop; tasks that run at the same time are batched."""
        return await self.astream(prompt, params, special=special, **options).result()

    async def achat(
        self,
        messages: str | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Tools | None = None,
        **options: Any,
    ) -> Completion:
        """chat() for an event loop."""
        return await self._astream_chat(messages, tools, self._params(params, options)).result()

    def image(self, source: Any) -> Image:
        """A picture as this model sees it, to be used in several requests: in chat(), pictures are prepared
        anew each time.

        `source` is what a message may have under "image". Raises what chat() raises for it.
        """
        from puna.llm.images import prepared

        return prepared(source, self.config, self.path.stem)

    def astream(
        self,
        prompt: Prompt | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Tools | None = None,
        special: bool = False,
        **options: Any,
    ) -> AsyncAnswer:
        """stream() for the event loop that is running: `async for text in llm.astream(...)`."""
        chosen = self._params(params, options)
        if is_conversation(prompt):
            return self._astream_chat(prompt, tools, chosen)
        return self._async_answer(self._request(prompt, chosen, tools, special))

    @overload
    def score(self, text: Prompt, *, top: int = 0, special: bool = False) -> tuple[TokenLogprob, ...]: ...

    @overload
    def score(
        self, text: Batch, *, top: int = 0, special: bool = False
    ) -> list[tuple[TokenLogprob, ...]]: ...

    def score(
        self, text: Prompt | Batch, *, top: int = 0, special: bool = False
    ) -> tuple[TokenLogprob, ...] | list[tuple[TokenLogprob, ...]]:
        """The natural-log probability of every token of a text (or of ids) after the first.

        A text begins with the model's BOS token where its file asks for one; then every token of the text
        itself is scored. `top` adds the most likely tokens at each place. A list is scored as one batch.
        Raises what generate() raises.
        """
        params = sampling_params({"logprobs": top}, _SCORING)
        requests = [self.text_request(item, params, special=special, is_scored=True) for item in items(text)]
        scores = [answer.prompt_logprobs or () for answer in self._run(requests)]
        return scores if is_batch(text) else scores[0]

    def _run(self, requests: Sequence[Request]) -> list[Completion]:
        """Run requests as one batch. What is wrong with one is raised, and the others are cancelled."""
        streams: list[Stream] = []
        for i, request in enumerate(requests):
            try:
                streams.append(self._engine.stream(request))
            except BadInput as error:
                if len(requests) == 1:
                    raise
                raise type(error)(f"prompt {i}: {error}") from None
        return [stream.result() for stream in streams]

    def submit(self, request: Request) -> AsyncStream:
        """Start a request inside a running event loop. Raises PromptTooLong, BadValue or EngineClosed."""
        return _begun(self._engine.astream, request)

    def stats(self) -> EngineStats:
        """What the engine does now and has done so far."""
        return self._engine.stats()

    def _answer(self, request: Request) -> Answer:
        from puna.llm.answer import Answer

        return Answer(self, _begun(self._engine.stream, request))

    def _async_answer(self, request: Request) -> AsyncAnswer:
        from puna.llm.answer import AsyncAnswer

        return AsyncAnswer(self, _begun(self._engine.astream, request))

    def _astream_chat(
        self, messages: str | Sequence[Message], tools: Tools | None, params: SamplingParams
    ) -> AsyncAnswer:
        """Pictures take a while to decode: conversations with some begin in another thread."""
        if not isinstance(messages, Sequence) or not has_parts(messages):
            return self._async_answer(self.chat_request(messages, params, tools=tools))
        from asyncio import get_running_loop, to_thread

        from puna.llm.answer import AsyncAnswer

        async def start() -> AsyncStream:
            request = await to_thread(self.chat_request, messages, params, tools=tools)
            return _begun(self._engine.astream, request)

        return AsyncAnswer(self, get_running_loop().create_task(start()))

    def _request(
        self,
        prompt: Prompt | Sequence[Message],
        params: SamplingParams,
        tools: Tools | None,
        special: bool,
    ) -> Request:
        if is_conversation(prompt):
            return self.chat_request(prompt, params, tools=tools)
        if tools is not None:
            raise BadInput("tools need messages to answer, got a text to continue; pass a list of messages")
        return self.text_request(prompt, params, special=special)

    def text_request(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        special: bool = False,
        is_scored: bool = False,
    ) -> Request:
        """What generate() (or with `is_scored`, score()) makes of a prompt, for submit()."""
        if not isinstance(prompt, str | Sequence) or isinstance(prompt, bytes | bytearray):
            raise BadValue(f"a prompt must be a text or a list of token ids, got a {type(prompt).__name__}")
        ids = self.tokenizer.encode(prompt, special=special) if isinstance(prompt, str) else list(prompt)
        return self._request_of(ids, params, continuing=True, is_scored=is_scored)

    def chat_request(
        self, messages: str | Sequence[Message], params: SamplingParams, *, tools: Tools | None = None
    ) -> Request:
        """What chat() makes of a conversation, for submit()."""
        from puna.text.chat import encode_chat

        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        for what, value in (("messages", turns), ("tools", tools if tools is not None else ())):
            if not isinstance(value, Sequence) or isinstance(value, str | bytes):
                raise BadValue(f"{what} must be a list of mappings, got a {type(value).__name__}")
        options: dict[str, Any] = {"tools": tools, "chat_format": self.chat_format}
        if not has_parts(turns):
            return self._request_of(encode_chat(self.tokenizer, turns, **options), params, continuing=False)
        from puna.llm.images import place, take_images

        plain, images = take_images(turns, self.config, self.path.stem)
        patches = self.config.vision.tokens_per_tile if self.config.vision else None
        ids = encode_chat(self.tokenizer, plain, patches=patches, **options)
        ids, placed = place(self.config, self.tokenizer, ids, images)
        return self._request_of(ids, params, continuing=False, images=placed)

    def _request_of(
        self,
        ids: list[int],
        params: SamplingParams,
        *,
        continuing: bool,
        is_scored: bool = False,
        images: Sequence[PlacedImage] = (),
    ) -> Request:
        from puna.llm.answer import TimedText

        sink = TimedText(self.tokenizer, params.stop, skip_special=True, continuing=continuing)
        end_ids = self.tokenizer.end_ids
        return Request(ids, params, end_ids, prompt_logprobs=is_scored, sink=sink, images=images)

    def _params(self, params: SamplingParams | None, options: Mapping[str, Any]) -> SamplingParams:
        """`params` or the defaults, with `options` in their place and a seed."""
        chosen = sampling_params(options, params or DEFAULT_PARAMS)
        if chosen.seed is not None:
            return chosen
        return replace(chosen, seed=next(self._seeds) if self._seeds else _random_seed())


def _begun(start: Callable[[Request], _Begun], request: Request) -> _Begun:
    """What `start` makes of a request; a prompt that is too long is told how much of it is images."""
    try:
        return start(request)
    except PromptTooLong as error:
        if not request.images:
            raise
        from puna.llm.images import explained

        raise explained(error, request) from None


def _random_seed() -> int:
    return int.from_bytes(os.urandom(4), "little")
