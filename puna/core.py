"""The nouns of Puna: what a caller asks for, what a step runs, what can go wrong.

Everything here is plain data; no tensor, file or terminal is known in this file.

Errors (each message is one sentence with what was expected, what was found, and what to do):

    PunaError                  exit 1
    ├── BadInput               exit 2   whatever a file, a flag or a request can get wrong
    │   ├── BadFile                     truncated, foreign or inconsistent file
    │   │   └── Unsupported             well formed, but names something Puna does not run
    │   ├── UnknownModel                no such catalog name, file or source
    │   ├── NotPulled                   known, but not in the model store yet
    │   ├── UnknownOption               no such option; names the closest known one
    │   ├── BadValue                    a value outside its range
    │   ├── PromptTooLong               more tokens than the context holds
    │   └── DoesNotFit                  needs more memory than there is
    ├── WorkFailed             exit 1   the input was good, the work did not succeed
    │   ├── DownloadFailed              network, registry, or wrong checksum
    │   ├── DiskFull                    no room to write
    │   └── EngineClosed                a request was made to, or pending in, a closed engine
    └── Cancelled              exit 130 the user interrupted
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from itertools import count
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class PunaError(Exception):
    """Root of everything Puna raises on purpose."""

    exit_code = 1


class BadInput(PunaError):
    exit_code = 2


class BadFile(BadInput): ...


class Unsupported(BadFile): ...


class UnknownModel(BadInput): ...


class NotPulled(BadInput):
    """`model` is what `puna pull` takes to bring it."""

    def __init__(self, message: str, model: str) -> None:
        super().__init__(message)
        self.model = model


class UnknownOption(BadInput): ...


class BadValue(BadInput): ...


class PromptTooLong(BadInput): ...


class DoesNotFit(BadInput): ...


class WorkFailed(PunaError): ...


class DownloadFailed(WorkFailed): ...


class DiskFull(WorkFailed): ...


class EngineClosed(WorkFailed): ...


class Cancelled(PunaError):
    exit_code = 130


_LONGEST_NAME = 200


def closest(name: str, known: Sequence[str]) -> str:
    """`"; did you mean 'x'?"` for the known name nearest to `name`, or `""`."""
    if len(name) > _LONGEST_NAME:  # the time grows with its square, and it may be a stranger's
        return ""
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


MOST_STOP = 4000  # characters: what watches for a stop string grows with the square of its length


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens. Applied in the order of the fields down to `typical_p`.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0 and `typical_p` 1 are off; among equal logits
    the lower id wins. Equal seeds give equal tokens whatever else runs. `logprobs` are always those of the
    model's own distribution, before bias, penalties and temperature.
    """

    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> added to its logit
    repetition_penalty: float = 1.0  # divides (multiplies) positive (negative) logits of tokens seen so far
    frequency_penalty: float = 0.0  # subtracted per occurrence in the output
    presence_penalty: float = 0.0  # subtracted once if in the output
    penalty_window: int | None = None  # what all three look at: so many last tokens, prompt or output
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    seed: int | None = None  # modulo 2**64; None draws one when the request is made
    max_tokens: int | None = None  # None: until the context is full
    min_tokens: int = 0  # no end or stop before this many; at most max_tokens
    stop: tuple[str, ...] = ()  # together MOST_STOP characters at most
    stop_ids: tuple[int, ...] = ()  # beside the model's own end ids
    ignore_end: bool = False  # do not stop at the model's end ids
    logprobs: int | None = None  # of each chosen token, and of the n most likely ones
    logprob_ids: tuple[int, ...] = ()  # and of these tokens, likely or not, where logprobs are asked for

    def __post_init__(self) -> None:
        checks: list[tuple[str, bool, str]] = [
            ("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "from 0.01 to 100"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "from -2 to 2"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "from -2 to 2"),
            ("penalty_window", self.penalty_window is None or self.penalty_window >= 0, "0 (none) or more"),
            ("temperature", 0 <= self.temperature <= 100, "from 0 to 100"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("typical_p", 0 < self.typical_p <= 1, "above 0, at most 1"),
            ("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "1 or more"),
            ("min_tokens", self.min_tokens >= 0, "0 or more"),
            ("logprobs", self.logprobs is None or 0 <= self.logprobs <= 100, "from 0 to 100"),
            ("logit_bias", all(-1e6 <= v <= 1e6 for v in self.logit_bias.values()), "from -1e6 to 1e6"),
            ("stop", "" not in self.stop, "non-empty strings"),
            ("stop", sum(map(len, self.stop)) <= MOST_STOP, f"{MOST_STOP:,} characters in all at most"),
        ]
        for name, good, expected in checks:
            value = getattr(self, name)
            if not good or (isinstance(value, float) and not isfinite(value)):
                raise BadValue(f"{name} must be {expected}, got {value!r:.200}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise BadValue(
                f"min_tokens must be at most max_tokens ({self.max_tokens}), got {self.min_tokens}; lower it "
                "or raise max_tokens"
            )

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> SamplingParams:
        """Build from keyword options; an unknown name is an error that suggests the closest known one."""
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                raise UnknownOption(f"unknown sampling option {name!r}{closest(name, known)}")
        return cls(**options)


FinishReason = Literal["stop", "length", "cancelled"]
Pooling = Literal["last", "mean"]  # which rows make an embedding: that of the last token, or all of them


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's natural-log probability under the model; `top` has the likeliest ones, then `logprob_ids`."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished answer. `text` excludes the stop string, `token_ids` the end token that stopped it."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop: str | int | None  # the stop string or id that ended it
    n_prompt: int  # tokens
    n_cached: int  # prompt tokens answered from the prefix cache
    logprobs: tuple[TokenLogprob, ...] | None = None  # of token_ids
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None  # of the prompt after its first token


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """A picture prepared for one model: normalized tiles. Equal digests: equal pixels in an equal grid."""

    pixels: NDArray[np.float32]  # [tiles, 3, side, side]; Llama 4 adds a thumbnail last if there are several
    rows: int  # of the grid that the tiles without the thumbnail fill, row by row
    columns: int
    digest: bytes


@dataclass(frozen=True, slots=True, eq=False)
class PlacedImage:
    """An image, and where in the sequence its placeholder tokens stand.

    `positions` rise: one for every embedding that takes a token's place (Llama 4, early fusion), or the one
    position from which on tokens attend to the image (Llama 3.2 Vision, cross-attention).
    """

    image: Image
    positions: Sequence[int]


class TextSink(Protocol):
    """Turns the tokens of one answer into text as they come; text.stream.TextStream is one."""

    @property
    def stopped(self) -> str | None: ...  # the stop string that was met, once one was

    def push(self, token_id: int, /) -> str: ...  # take the next token; returns the text certain by now

    def flush(self) -> str: ...  # the answer has ended; returns the text that was held back


class TokenGrammar(Protocol):
    """What one answer may say, told token by token; engine.grammar_state has one. For one thread at a time.

    V is the model's vocabulary; a bit of a mask says whether a token may be next, the lowest bit of the first
    byte for token 0. End tokens may be next exactly where the answer so far is whole.
    """

    @property
    def may_end(self) -> bool: ...  # the answer so far is whole

    @property
    def is_complete(self) -> bool: ...  # and nothing may follow it

    @property
    def problem(self) -> str: ...  # why there are no masks any more; empty while there are

    def masks(self, draft: Sequence[int], /) -> NDArray[np.uint8]:
        """Masks of the next token, and of the one after each token of `draft`, which must be possible ones:
        [1 + len(draft), at least V / 8]. Valid until the next call; the state stays as it is.
        """
        ...

    def n_possible(self, draft: Sequence[int], /) -> int: ...  # how many tokens of a draft could be next

    def forced(self) -> Sequence[int]: ...  # tokens of a text that has to be next, in a likely division

    def accept(self, token_id: int, /) -> None: ...  # the answer goes on with that token


@dataclass(slots=True)
class Request:
    """One prompt on its way through the engine."""

    prompt: Sequence[int]
    params: SamplingParams
    end_ids: frozenset[int] = frozenset()  # the model's own end tokens; set by whoever knows the tokenizer
    prompt_logprobs: bool = False  # also report the log-probability of every prompt token after the first
    sink: TextSink | None = None  # gives the results their text; needed for stop strings
    images: Sequence[PlacedImage] = ()  # in the order of their positions
    grammar: TokenGrammar | None = None  # what the answer is held to; made for this request alone
    adapter: int = 0  # number of a loaded adapter, never used again for another one; 0: the model itself
    priority: int = 0  # from -1000 to 1000: higher goes first; set by whoever knows what the caller may
    cache_salt: str = ""  # only requests with the same one find each other's prompts and pictures in caches
    tenant: str = ""  # requests of one tenant share what all tenants of a priority have equal parts of
    pooling: Pooling | None = None  # asks for an embedding of the prompt, and for no answer
    id: int = field(default_factory=count().__next__)  # unique in the process


@dataclass(slots=True)
class StepResult:
    """What one step made known about one request. The last one has a finish reason, or an error."""

    request_id: int
    token_ids: list[int]  # new, without the end token that stopped it
    text: str  # new, without the stop string
    n_cached: int  # prompt tokens answered from the prefix cache
    logprobs: list[TokenLogprob]  # of token_ids, if asked for
    prompt_logprobs: list[TokenLogprob]  # of the next few prompt tokens, if asked for
    finish_reason: FinishReason | None = None
    stop: str | int | None = None  # the stop string or id that ended it
    error: PunaError | None = None  # of this request alone
    embedding: NDArray[np.float32] | None = None  # [embedding_dim] with the finish reason, if asked for
    admitted_at: float | None = None  # perf_counter when its first step was scheduled


@dataclass(slots=True)
class Chunk:
    """The part of one sequence that a step runs: prefill of many tokens, decode of one or a few guessed."""

    # both sequences are array('i'), which numpy and C can view for free; no view may outlive the step
    tokens: Sequence[int]
    start: int  # position of tokens[0]; keys and values of 0..start-1 are in the cache already
    blocks: Sequence[int]  # block table covering 0..start+len(tokens)-1
    n_logits: int  # logits are wanted after each of the last n_logits tokens
    images: Sequence[PlacedImage] = ()  # of the whole sequence, those before and behind the chunk too
    # the same for layers with chunked attention, where they have blocks of their own, from local_start on: a
    # multiple of the executor's local_window, at most `start`, nearer than that
    local_blocks: Sequence[int] = ()
    local_start: int = 0
    adapter: int = 0  # the request's


@dataclass(slots=True)
class Batch:
    """What one step runs; any mix of prefill and decode. Set by the scheduler."""

    chunks: list[Chunk]


class Executor(Protocol):
    """Runs steps of one model. The engine knows nothing else of a model.

    The cache has `n_blocks` blocks of `block_size` positions each. Contents of a block are a function of the
    adapter and of the tokens and images that precede and fill it, so blocks of equal prefixes may be shared.
    An executor whose layers see back to a multiple of `local_window` only, in part, may keep `n_local_blocks`
    others for those; where it does not, local_window is 0 and one block holds all layers.
    """

    block_size: int
    n_blocks: int
    n_local_blocks: int
    local_window: int
    vocab_size: int
    embedding_dim: int  # columns of what embed() gives
    n_token_ids: int  # that may be read: those from vocab_size on stand for images and are never predicted
    context_length: int
    max_images: int | None  # that running sequences may look at together, unless one alone has more

    def n_image_positions(self, image: Image) -> int:
        """Positions that an image takes; raises BadValue if this model cannot see it. Safe in any thread."""
        ...

    def step(self, batch: Batch) -> NDArray[np.float32]:
        """Run the batch, writing keys and values to its blocks; returns logits [sum of n_logits, vocab_size].

        The array is valid until the next step. A row depends on its own sequence only: not on the other
        chunks, on how the sequence was cut into chunks, or on the number of threads.
        """
        ...

    def embed(self, batch: Batch) -> NDArray[np.float32]:
        """step(), but rows are what the output matrix multiplies: [sum of n_logits, embedding_dim]."""
        ...

    def prepare_adapter(self, adapter: Any, /) -> Any: ...  # weights.adapter's; any thread; raises BadValue

    def load_adapter(self, number: int, prepared: Any, /) -> None: ...  # chunks may have it; between steps

    def unload_adapter(self, number: int, /) -> None: ...  # between steps

    def close(self) -> None:
        """Free the weights and the cache. Further steps are errors."""
        ...
