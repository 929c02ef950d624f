"""What a deployment could do at best: no step reads less than its weights and cache or multiplies less than
the model, and reading and multiplying overlap perfectly. A bound, never a forecast: `calibrate.py` has the
factors by which real engines miss it.

Per request of `prompt` and `output` tokens, with B requests at once on n accelerators:

    read     = output * (weights + B * cache of the mean context) / (B * n * bandwidth)
    multiply = (2 * active weights * (new prompt + output) + attention) / (n * peak)

Active weights are without the embedding table, of which a token reads one row, and for prompts without the
output head. Communication is counted only where a
bandwidth of the links is given. Sources: kipply, "Transformer inference arithmetic"; zeux, "LLM inference
speed of light"; Erdil, arXiv:2506.04645.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor, inf

from puna.core import BadValue, DoesNotFit, closest
from puna.economics.hardware import Chip, positive, share
from puna.model.config import ModelConfig
from puna.model.sizes import CACHE_BYTES, kv_bytes, n_active, n_parameters

# bytes of a weight; block scales left out, as a bound may
WEIGHT_BYTES: Mapping[str, float] = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5, "int4": 0.5}
CACHE_FORMATS: Mapping[str, float] = {"fp8": 1.0, **CACHE_BYTES}
# peaks that may serve matrices of a format, of which the highest counts
_PEAKS: Mapping[str, tuple[str, ...]] = {
    "bf16": ("bf16_tflops",),
    "fp8": ("fp8_tflops", "int8_tops", "bf16_tflops"),
    "int8": ("int8_tops", "fp8_tflops", "bf16_tflops"),
    "fp4": ("fp4_tflops", "fp8_tflops", "int8_tops", "bf16_tflops"),
    "int4": ("fp4_tflops", "int8_tops", "fp8_tflops", "bf16_tflops"),
}


@dataclass(frozen=True, slots=True)
class Deployment:
    """One copy of a model on `n` accelerators (tensor parallel), and the requests it is given."""

    config: ModelConfig
    chip: Chip
    n: int = 1
    weights: str = "bf16"
    cache: str = "bf16"
    prompt: int = 1000
    cached: int = 0  # of the prompt, found in the prefix cache
    output: int = 1000
    batch: int | None = None  # requests at once; None: as many as memory holds
    memory_fraction: float = 0.9  # of the memory that weights and cache may take
    link_gb_s: float | None = None  # of one accelerator to the others; None: communication costs nothing

    def __post_init__(self) -> None:
        for name, known in (("weights", WEIGHT_BYTES), ("cache", CACHE_FORMATS)):
            value = getattr(self, name)
            if value not in known:
                text = f"{name} must be one of {', '.join(known)}, got {value!r}"
                raise BadValue(text + closest(value, list(known)))
        for name, least in (("n", 1), ("prompt", 0), ("cached", 0), ("output", 1), ("batch", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise BadValue(f"{name} must be {least} or more, got {value}")
        if self.cached > self.prompt:
            raise BadValue(f"cached must be some of the {self.prompt} prompt tokens, got {self.cached}")
        share("memory_fraction", self.memory_fraction)
        if self.link_gb_s is not None:
            positive("link_gb_s", self.link_gb_s)

    @property
    def weight_bytes(self) -> float:
        """In memory: all parameters."""
        return n_parameters(self.config) * WEIGHT_BYTES[self.weights]

    def cache_bytes(self, context: int) -> float:
        """Keys and values of one request; Llama 4's layers with chunked attention keep one chunk."""
        return kv_bytes(self.config, context, "bf16") / 2 * CACHE_FORMATS[self.cache]

    @property
    def mean_context(self) -> int:
        """Positions that a decoding step looks at, on average."""
        return self.prompt + self.output // 2

    @property
    def room(self) -> float:
        """Bytes for keys and values. Raises DoesNotFit."""
        memory = self.n * self.chip.need("memory_gb") * 1e9 * self.memory_fraction
        left = memory - self.weight_bytes
        if left <= 0:
            raise DoesNotFit(
                f"{self.weight_bytes / 1e9:.0f} GB of {self.weights} weights do not fit in "
                f"{memory / 1e9:.0f} GB of {self.n} x {self.chip.name}; use more of them or a smaller format"
            )
        return left

    @property
    def most(self) -> int:
        """Requests that memory holds at once, at their mean context. Raises DoesNotFit for not even one."""
        each = self.cache_bytes(self.mean_context)
        found = floor(self.room / each) if each else 2**31
        if found < 1:
            raise DoesNotFit(
                f"the cache of one request of {self.prompt} + {self.output} tokens does not fit beside the "
                f"weights on {self.n} x {self.chip.name}; use more of them or a smaller cache format"
            )
        return found


@dataclass(frozen=True, slots=True)
class Bound:
    """Seconds of the whole deployment for one request, when `batch` requests run at once."""

    deployment: Deployment
    batch: int
    read_s: float  # of all decoding steps
    decode_s: float  # multiplying and communicating for the output
    prefill_s: float  # likewise for the part of the prompt that is not cached
    cached_s: float  # bringing keys and values of the cached part once
    notes: tuple[str, ...] = ()

    @property
    def request_s(self) -> float:
        """Reading behind multiplying, wholly overlapped: prefill hides where decoding waits for memory."""
        return max(self.read_s + self.cached_s, self.decode_s + self.prefill_s)

    @property
    def output_tok_s(self) -> float:
        return self.deployment.output / self.request_s

    @property
    def total_tok_s(self) -> float:
        return (self.deployment.prompt + self.deployment.output) / self.request_s

    @property
    def user_tok_s(self) -> float:
        """Tokens per second of one answer."""
        return self.output_tok_s / self.batch

    @property
    def limit(self) -> str:
        reading = self.read_s + self.cached_s >= self.decode_s + self.prefill_s
        return "memory bandwidth" if reading else "arithmetic"

    def shares(self) -> dict[str, float]:
        """How the time of a request is ascribed to its new prompt tokens, cached ones and output; sums to 1.

        In proportion to what each would take alone.
        """
        alone = {
            "prefill": self.prefill_s,
            "cached": self.cached_s,
            "decode": max(self.read_s, self.decode_s),
        }
        whole = sum(alone.values())
        return {name: value / whole for name, value in alone.items()}


def peak(chip: Chip, weights: str) -> float | None:
    """Operations per second of the fastest arithmetic that may serve this format; None if nobody says."""
    known = [value for name in _PEAKS[weights] if (value := chip.get(name)) is not None]
    return max(known) * 1e12 if known else None


def step_weight_bytes(config: ModelConfig, weights: str, batch: float) -> float:
    """What one step of `batch` tokens reads: all matrices but the embedding table, and of experts as many as
    an even router sends so many tokens to."""
    read = float(_matrices(config) + _table(config))
    if config.experts is not None:
        e = config.experts
        layers = sum(config.has_experts(i) for i in range(config.n_layers))
        one = 3 * config.dim * e.expert_ffn_dim * layers  # the same expert of every layer
        hit = e.n_experts * (1 - (1 - e.n_active / e.n_experts) ** batch)
        read += (hit - e.n_active) * one
    return read * WEIGHT_BYTES[weights]


def _table(config: ModelConfig) -> int:
    """Numbers of the output head, which is as large as the embedding table."""
    return config.vocab_size * config.dim


def _matrices(config: ModelConfig) -> int:
    """Active parameters that every token is multiplied with: neither embedding table nor output head."""
    return n_active(config) - _table(config) * (1 if config.tied else 2)


def attention_flops(config: ModelConfig, first: int, last: int) -> float:
    """Of the tokens at positions first .. last-1: queries times keys and weights times values, causal."""
    total = 0.0
    for layer in range(config.n_layers):
        chunk = config.chunk(layer)
        seen = _looked_at(last, chunk) - _looked_at(first, chunk)
        total += 4.0 * config.n_heads * config.head_dim * seen
    return total


def _looked_at(n: int, chunk: int | None) -> float:
    """Positions that tokens 0 .. n-1 look at together."""
    if chunk is None or n <= chunk:
        return n * (n + 1) / 2
    whole, rest = divmod(n, chunk)
    return whole * chunk * (chunk + 1) / 2 + rest * (rest + 1) / 2


def bound(d: Deployment) -> Bound:
    """Raises DoesNotFit, and BadValue for a chip without memory or bandwidth."""
    most = d.most
    batch = most if d.batch is None else d.batch
    if batch > most:
        raise DoesNotFit(
            f"memory of {d.n} x {d.chip.name} holds {most} such requests at once, got batch {batch}"
        )
    bandwidth = d.n * d.chip.need("bandwidth_tb_s") * 1e12
    step = step_weight_bytes(d.config, d.weights, batch) + batch * d.cache_bytes(d.mean_context)
    read_s = d.output * step / (batch * bandwidth)
    notes = []
    rate = peak(d.chip, d.weights)
    if rate is None:
        notes.append(f"no source states the arithmetic of {d.chip.name}: the bound is that of memory alone")
    per_second = inf if rate is None else d.n * rate
    new = d.prompt - d.cached
    # a prompt needs the output head for its last token alone, which is counted with the output
    prefill = 2.0 * _matrices(d.config) * new + attention_flops(d.config, d.cached, d.prompt)
    head = _matrices(d.config) + _table(d.config)
    decode = 2.0 * head * d.output + attention_flops(d.config, d.prompt, d.prompt + d.output)
    if d.prompt + d.output > d.config.context_length:
        notes.append(
            f"the model was made for {d.config.context_length:,} positions; a request here has "
            f"{d.prompt + d.output:,}"
        )
    if d.n > 1 and d.link_gb_s is None:
        notes.append("communication is not counted; give the bandwidth of the links")
    return Bound(
        d,
        batch,
        read_s,
        decode / per_second + _link_seconds(d, d.output),
        prefill / per_second + _link_seconds(d, new),
        d.cache_bytes(d.cached) / bandwidth,
        tuple(notes),
    )


def _link_seconds(d: Deployment, tokens: int) -> float:
    """Two all-reduces a layer of activations in 16 bits, each moving 2 (n - 1) / n of them (ring)."""
    if d.n == 1 or d.link_gb_s is None:
        return 0.0
    moved = 2 * (d.n - 1) / d.n * 2 * d.config.n_layers * d.config.dim * 2 * tokens
    return moved / (d.link_gb_s * 1e9)
