"""LLM: a loaded model that answers."""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from secrets import randbits
from time import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Never, Self, overload

from puna.core import (
    BadInput,
    Completion,
    EngineClosed,
    Image,
    Pooling,
    Request,
    SamplingParams,
    TokenLogprob,
    UnknownOption,
    closest,
)
from puna.llm.config import DEFAULT_PARAMS, LLMConfig, sampling_params
from puna.llm.prompts import Batch, Message, Prompt, has_parts, is_batch, is_conversation, items
from puna.llm.sessions import Sessions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from puna.engine.bridge import AsyncStream, EngineThread, Stream
    from puna.engine.stats import EngineStats
    from puna.llm.answer import Answer, AsyncAnswer
    from puna.llm.config import BackendName, CacheType, Preference, WeightsName
    from puna.llm.load import Progress
    from puna.llm.speed import Speed
    from puna.model.config import ModelConfig
    from puna.text.chat import Tools
    from puna.text.tokenizer import Tokenizer

_SCORING = SamplingParams(temperature=0, max_tokens=1)


class LLM(Sessions):
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
    threads: int
    load_seconds: float
    speed: Speed  # what steps take at the machine's limit
    memory_bytes: int  # that weights, a full cache and the work of a step take
    path: Path
    _base: LLM | None = None  # whose memory this one has
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
        draft: str | os.PathLike[str] | None = LLMConfig.draft,
        memory: int | None = LLMConfig.memory,
        prefer: Preference = LLMConfig.prefer,
        progress: Progress | None = None,
        **unknown: Never,
    ) -> None:
        known = [field.name for field in fields(LLMConfig)]
        for name in unknown:
            raise UnknownOption(f"LLM has no option {name!r}{closest(name, known)}")
        asked = LLMConfig(
            context, cache_type, threads, batch, seed, speculate, backend, device, mmproj, chat_format,
            weights, tensor_parallel, draft, memory, prefer,
        )  # fmt: skip
        from puna.llm.adapters import Adapters
        from puna.llm.load import chat_format_of, load
        from puna.weights import store

        self.path, self._loaded_at = store.resolve(os.fspath(model)), time()
        loaded = load(self.path, asked, progress)
        self.config, self.tokenizer, self.pooling = loaded.config, loaded.tokenizer, loaded.pooling
        self.context, self.cache_tokens = loaded.room.context, loaded.room.cache_tokens
        self.threads, self.load_seconds, self.speed = loaded.threads, loaded.seconds, loaded.speed
        self.memory_bytes = loaded.memory_bytes
        self._engine: EngineThread = loaded.engine
        self.adapters = Adapters(loaded.engine, self.config)
        self.chat_format = chat_format_of(os.fspath(model), self.tokenizer, chat_format)
        self._seeds = count(seed) if seed is not None else None
        self._finalizer = weakref.finalize(self, loaded.engine.close)

    @property
    def is_open(self) -> bool:
        """False once it was closed or its engine broke: then it answers nothing any more."""
        return self._engine.is_open

    def close(self) -> None:
        """Cancel what runs and free the memory. A second call does nothing."""
        self._finalizer()

    def load_adapter(self, name: str, path: str | os.PathLike[str]) -> LLM:
        """Load a low-rank adapter (LoRA), PEFT's folder or a GGUF file. Returns this model with it, in the
        same memory: close either, and both are closed. Raises BadFile, Unsupported or BadValue.
        """
        self.adapters.load(name, Path(path).expanduser())
        return self.with_adapter(name)

    def with_adapter(self, name: str) -> LLM:
        """This model with an adapter that is loaded; raises UnknownModel."""
        found = copy.copy(self)
        found._adapter, found._base = self.adapters.get(name), self
        return found

    def unload_adapter(self, name: str) -> None:
        """No new request gets it, and those that have it end with it. Raises UnknownModel."""
        self.adapters.unload(name)

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

    def embed(
        self,
        text: Prompt | Batch,
        *,
        pooling: Pooling | None = None,
        normalize: bool = True,
        special: bool = False,
    ) -> NDArray[np.float32]:
        """The embedding of a text (or of ids): [dim], of a list [number of texts, dim].

        It is made of the last layer's outputs after the final norm: that of the last token, or with `pooling`
        "mean" the mean of all tokens; by default what the file asks for, else that of the last token. A text
        begins with the BOS token where the file asks for one. The Euclidean norm is 1 unless `normalize` is
        false. On the CPU the bits depend on the text alone. Raises what generate() raises.
        """
        import numpy as np

        from puna.engine.pooling import normalized

        requests = [self.embed_request(item, pooling, special=special) for item in items(text)]
        rows_D: list[NDArray[np.float32]] = []
        for stream in self._streams(requests):
            rows_D += [r.embedding for r in stream if r.embedding is not None]
        if len(rows_D) != len(requests):
            raise EngineClosed("the model was closed while it was embedding; load it again to go on")
        found = [normalized(row_D) if normalize else row_D for row_D in rows_D]
        return np.stack(found) if is_batch(text) else found[0]

    def _run(self, requests: Sequence[Request]) -> list[Completion]:
        """Run requests as one batch. What is wrong with one is raised, and the others are cancelled."""
        return [stream.result() for stream in self._streams(requests)]

    def _streams(self, requests: Sequence[Request]) -> list[Stream]:
        streams: list[Stream] = []
        for i, request in enumerate(requests):
            try:
                streams.append(self._engine.stream(request))
            except BadInput as error:
                if len(requests) == 1:
                    raise
                raise type(error)(f"prompt {i}: {error}") from None
        return streams

    def submit(self, request: Request) -> AsyncStream:
        """Start a request inside a running event loop. Raises PromptTooLong, BadValue or EngineClosed."""
        from puna.llm.answer import begun

        return begun(self._engine.astream, request)

    def stats(self) -> EngineStats:
        """What the engine does now and has done so far."""
        return self._engine.stats()

    def _answer(self, request: Request) -> Answer:
        from puna.llm.answer import Answer, begun

        return Answer(self, begun(self._engine.stream, request))

    def _async_answer(self, request: Request) -> AsyncAnswer:
        from puna.llm.answer import AsyncAnswer

        return AsyncAnswer(self, self.submit(request))

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
            return self.submit(request)

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

    def _params(self, params: SamplingParams | None, options: Mapping[str, Any]) -> SamplingParams:
        """`params` or the defaults, with `options` in their place and a seed."""
        chosen = sampling_params(options, params or DEFAULT_PARAMS)
        if chosen.seed is not None:
            return chosen
        return replace(chosen, seed=next(self._seeds) if self._seeds else randbits(32))
