"""What a model makes of prompts: requests for its engine, by whoever runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from puna.core import BadInput, BadValue, PlacedImage, Pooling, PromptTooLong, Request, SamplingParams
from puna.llm.prompts import Message, Prompt, has_parts, n_characters

if TYPE_CHECKING:
    from puna.llm.adapters import LoadedAdapter
    from puna.model.config import ModelConfig
    from puna.text.chat import Tools
    from puna.text.tokenizer import Tokenizer

_EMBEDDING = SamplingParams(temperature=0)  # nothing is sampled


class Requests:
    """The half of LLM that runs nothing. Every method is safe from any thread."""

    config: ModelConfig
    tokenizer: Tokenizer
    path: Path
    context: int  # tokens that a prompt and its answer can have together
    cache_tokens: int  # tokens that the cache has room for, all requests together
    chat_format: str | None
    pooling: str  # of embeddings where nobody says; as the file has it, which may be one that is not done
    _adapter: LoadedAdapter | None = None  # of all requests

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
        if isinstance(prompt, str):
            self._check_size(len(prompt))
        ids = self.tokenizer.encode(prompt, special=special) if isinstance(prompt, str) else list(prompt)
        return self._request_of(ids, params, continuing=True, is_scored=is_scored)

    def chat_request(
        self,
        messages: str | Sequence[Message],
        params: SamplingParams,
        *,
        tools: Tools | None = None,
        continue_final_message: bool = False,
        after: Sequence[int] = (),
    ) -> Request:
        """What chat() makes of a conversation, for submit(); of one that goes on from ids, with `after`. With
        `continue_final_message`, the last message is the assistant's, and the answer goes on where it ends.
        """
        from puna.text.chat import encode_chat, encode_further

        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        for what, value in (("messages", turns), ("tools", tools if tools is not None else ())):
            if not isinstance(value, Sequence) or isinstance(value, str | bytes):
                raise BadValue(f"{what} must be a list of mappings, got a {type(value).__name__}")
        self._check_size(n_characters(turns))
        options: dict[str, Any] = {"tools": tools, "chat_format": self.chat_format}
        if after:
            if has_parts(turns):
                raise BadInput("images need the whole conversation as messages, token ids before it are none")
            if continue_final_message:
                raise BadInput("what goes on from token ids ends with a question, not with an answer begun")
            ids = encode_further(self.tokenizer, after, turns, **options)
            return self._request_of(ids, params, continuing=False, tools=tools)
        options["continue_final_message"] = is_begun = continue_final_message
        if not has_parts(turns):
            ids = encode_chat(self.tokenizer, turns, **options)
            return self._request_of(ids, params, continuing=is_begun, tools=tools)
        from puna.llm.images import place, take_images

        plain, images = take_images(turns, self.config, self.path.stem, min(self.context, self.cache_tokens))
        patches = self.config.vision.tokens_per_tile if self.config.vision else None
        ids = encode_chat(self.tokenizer, plain, patches=patches, **options)
        ids, placed = place(self.config, self.tokenizer, ids, images)
        return self._request_of(ids, params, continuing=is_begun, images=placed, tools=tools)

    def placed_request(
        self,
        messages: Sequence[Message],
        prompt: Callable[..., list[int]],
        params: SamplingParams,
    ) -> Request:
        """A request with the pictures of messages and a prompt that a caller builds, for submit().

        `prompt` is called with the tiles across and down of each picture, and with `patches`, the tokens
        of a tile.
        """
        from puna.llm.images import place, take_images
        from puna.text.formats.images import PATCHES

        self._check_size(n_characters(messages))
        room = min(self.context, self.cache_tokens)
        _, images = take_images(messages, self.config, self.path.stem, room)
        grids = [(image.columns, image.rows) for image in images]
        patches = self.config.vision.tokens_per_tile if self.config.vision else PATCHES
        ids = prompt(self.tokenizer, grids, patches=patches)
        ids, placed = place(self.config, self.tokenizer, ids, images)
        return self._request_of(ids, params, continuing=False, images=placed)

    def infill_request(self, prefix: str, suffix: str, params: SamplingParams) -> Request:
        """What the model is asked to write between two texts (Code Llama 7B and 13B), for submit().

        Raises BadValue where the vocabulary has no tokens for that.
        """
        from puna.text.formats.inst import infill

        self._check_size(len(prefix) + len(suffix))
        return self._request_of(infill(self.tokenizer, prefix, suffix), params, continuing=True)

    def embed_request(
        self, prompt: Prompt, pooling: Pooling | None = None, *, special: bool = False
    ) -> Request:
        """What embed() makes of a prompt, for submit(). Raises BadValue for a pooling that is not done."""
        chosen = pooling or self.pooling
        if chosen not in ("last", "mean"):
            where = "pooling" if pooling else "the pooling of this model's embeddings"
            raise BadValue(f"{where} must be last or mean, got {chosen!r}; choose one of them")
        request = self.text_request(prompt, _EMBEDDING, special=special)
        request.pooling, request.sink = cast(Pooling, chosen), None
        return request

    def _check_size(self, n: int) -> None:
        """Raise PromptTooLong for so many characters, where that is sure before they are encoded: a second of
        work for a megabyte."""
        room = min(self.context, self.cache_tokens)
        least = self.tokenizer.least_tokens(n)
        if least > room:
            raise PromptTooLong(
                f"the prompt has {n:,} characters and so {least} tokens at least, but the context holds "
                f"{room}; shorten the prompt, or load the model with a larger context"
            )

    def _request_of(
        self,
        ids: list[int],
        params: SamplingParams,
        *,
        continuing: bool,
        is_scored: bool = False,
        images: Sequence[PlacedImage] = (),
        tools: Tools | None = None,
    ) -> Request:
        from puna.llm.answer import text_sink

        sink = text_sink(self.tokenizer, params.stop, continuing=continuing, has_tools=bool(tools))
        end_ids = self.tokenizer.end_ids
        adapter = 0 if self._adapter is None else self._adapter.number
        return Request(ids, params, end_ids, is_scored, sink=sink, images=images, adapter=adapter)
