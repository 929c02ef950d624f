"""Sessions: the computed beginning of a conversation in a file, to go on without computing it again."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from puna.core import BadValue, SamplingParams, Unsupported, WorkFailed
from puna.engine.prefix import Parent, root_of
from puna.llm.prompts import Message, Prompt, is_conversation
from puna.llm.requests import Requests

if TYPE_CHECKING:
    from puna.engine.bridge import EngineThread
    from puna.text.chat import Tools


@dataclass(frozen=True, slots=True)
class Session:
    """What a file holds. `messages` are those of the conversation that was saved, if one was."""

    path: Path
    model: str
    tokens: tuple[int, ...]
    messages: tuple[Message, ...]
    n_bytes: int  # of the file


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose cache it is."""

    engine: EngineThread
    model: str  # name, for people
    weights: str  # fingerprint, of its adapter as well
    adapter: int = 0  # as the engine knows it
    salt: str = ""  # of the requests that may find it

    @property
    def root(self) -> Parent:
        return root_of(self.adapter, self.salt)


class Sessions(Requests):
    """What of LLM has to do with sessions."""

    _engine: EngineThread
    _loaded_at: float
    path: Path

    def save_session(
        self,
        path: str | os.PathLike[str],
        prompt: Prompt | Sequence[Message],
        *,
        tools: Tools | None = None,
        special: bool = False,
        max_bytes: int | None = None,
        cache_salt: str = "",
    ) -> Session:
        """Write the keys and values of a prompt, or of a conversation, to a file: load_session() puts them
        back, and what begins like this is answered without computing its beginning again.

        What of it is not in the cache is computed first. Only whole blocks of the cache are saved, so that up
        to 31 tokens at the end are not; of a conversation the messages are saved as well. `cache_salt` is
        that of the requests whose cache it is (core.Request).

        Raises what generate() raises; BadValue for a prompt that fills no block, or more than `max_bytes`;
        Unsupported for pictures and other backends than native; DiskFull, or WorkFailed where nothing can be
        written.
        """
        params = SamplingParams(temperature=0, max_tokens=1, ignore_end=True)
        messages: Sequence[Message] = ()
        if is_conversation(prompt):
            messages = prompt
            request = self.chat_request(prompt, params, tools=tools)
        else:
            request = self.text_request(prompt, params, special=special)
        if request.images:
            raise Unsupported("a session with pictures cannot be saved; leave them out")
        request.cache_salt = cache_salt
        origin = self._origin(cache_salt)
        tokens = array("i", request.prompt)
        size = self._engine.run(lambda engine: engine.transfer.block_tokens)
        if len(tokens) < size and not messages:
            raise BadValue(f"a session must have at least {size} tokens, this one has {len(tokens)}")
        self._engine.run(lambda engine: engine.transfer.store)  # before anything is computed for nothing
        self._engine.stream(request).result()
        from puna.llm.session_file import save

        return save(origin, Path(path), tokens, messages, max_bytes)

    def load_session(
        self, path: str | os.PathLike[str], *, max_bytes: int | None = None, cache_salt: str = ""
    ) -> Session:
        """Put what save_session() has written back into the cache, for requests with that salt. Answers are
        the same with and without.

        Raises BadFile for what is no session of this model as it is loaded, or is truncated or altered;
        BadValue for more than `max_bytes`; DoesNotFit where the cache has no room beside running requests.
        """
        from puna.llm.session_file import load

        return load(self._origin(cache_salt), Path(path), max_bytes)

    def _origin(self, cache_salt: str) -> Origin:
        """Raises WorkFailed where the model's files are not any more those that were loaded."""
        from puna.weights.fingerprint import fingerprint
        from puna.weights.load import open_checkpoint

        with open_checkpoint(self.path) as checkpoint:
            if any(path.stat().st_ctime > self._loaded_at for path in checkpoint.paths):
                raise WorkFailed(
                    f"the files of {self.path.name} have changed since they were loaded; load again"
                )
            model, weights, adapter = self.path.stem, fingerprint(checkpoint), self._adapter
        if adapter is None:
            return Origin(self._engine, model, weights, salt=cache_salt)
        weights = f"{weights}+{adapter.fingerprint}"
        return Origin(
            self._engine, f"{model} with the adapter {adapter.name}", weights, adapter.number, cache_salt
        )
