"""The draft model of an LLM: what it takes beside the model, whether it fits to it, and loading it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from puna.core import BadInput, BadValue
from puna.engine.config import EngineConfig
from puna.llm import backend
from puna.llm.backend import Backend
from puna.llm.config import LLMConfig
from puna.llm.memory import Needs, Room
from puna.model.rope import rope_table
from puna.weights.load import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from puna.engine.draft import DraftModel
    from puna.text.tokenizer import Tokenizer


@contextmanager
def opened(asked: LLMConfig) -> Iterator[Checkpoint | None]:
    """The checkpoint of the draft, if one is asked for. Raises what opening a model raises."""
    if asked.draft is None:
        yield None
        return
    from puna.weights import store

    with open_checkpoint(store.resolve(str(asked.draft))) as checkpoint:
        yield checkpoint


def together(needs: Needs, draft: Needs) -> Needs:
    """What model and draft take, each with a cache of as many tokens."""
    return replace(
        needs,
        name=f"{needs.name} with its draft",
        weight_bytes=needs.weight_bytes + draft.weight_bytes,
        token_bytes=needs.token_bytes + draft.token_bytes + draft.local_token_bytes,
        workspace_bytes=needs.workspace_bytes + draft.workspace_bytes,
    )


def check_vocabulary(tokenizer: Tokenizer, draft: Tokenizer) -> None:
    """Raise BadValue unless both models mean the same by every token id."""
    n, n_draft = tokenizer.vocab_size, draft.vocab_size
    if n != n_draft:
        raise BadValue(
            f"the draft must have the vocabulary of the model, which has {n:,} tokens, and it has "
            f"{n_draft:,}; choose a smaller model of the same family"
        )
    for i in range(n):
        if tokenizer.token_bytes(i) != draft.token_bytes(i):
            raise BadValue(
                f"the draft must have the vocabulary of the model, whose token {i} is "
                f"{tokenizer.token_bytes(i)!r:.40}, and it has {draft.token_bytes(i)!r:.40}; choose a "
                "smaller model of the same family"
            )


def load(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    asked: LLMConfig,
    room: Room,
    engine_config: EngineConfig,
    chosen: Backend,
) -> DraftModel:
    """The draft in memory, with a cache as large as the model's. Raises BadValue or Unsupported for one that
    does not go with it.
    """
    from puna.engine.draft import DraftModel
    from puna.llm.load import read_tokenizer

    try:
        check_vocabulary(tokenizer, read_tokenizer(checkpoint))
        whole = checkpoint.config
        config = replace(whole, context_length=min(whole.context_length, room.context))
        rope = rope_table(whole, asked.context if asked.context == config.context_length else None)
        executor = backend.make_executor(
            replace(chosen, ranks=1),
            config,
            checkpoint,
            rope,
            asked,
            room.cache_tokens,
            engine_config,
            lambda n_bytes: None,
        )
        try:
            return DraftModel(executor, engine_config.max_step_tokens)
        except BadInput:
            executor.close()
            raise
    except BadInput as error:
        raise type(error)(f"draft: {error}") from None
