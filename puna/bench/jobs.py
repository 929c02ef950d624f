"""What is measured: jobs that any engine can be given, and how much of each machine limit they cannot avoid.

Nothing here runs anything. docs/bench.md describes the output to users.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Literal

from puna.core import BadValue
from puna.model.config import ModelConfig
from puna.weights.blocks.tensor import RawTensor
from puna.weights.load import Checkpoint

FLOAT_KINDS = ("F32", "F16", "BF16", "FP8")  # of weights; all others are multiplied as int8
CACHE_BYTES = {"bf16": 2.0, "f16": 2.0, "f32": 4.0, "q8_0": 34 / 32}  # of one cached value


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """Sizes of a run. The defaults are those that docs/speed.md reports."""

    rounds: int = 5
    prompts: tuple[int, ...] = (512, 4096)  # prefill, tokens
    depths: tuple[int, ...] = (0, 512, 4096)  # decode, positions in the cache before the first timed token
    decode_tokens: int = 64  # timed, per stream
    batches: tuple[int, ...] = (1, 4, 8, 16)  # streams that decode together from depth 0
    streams: int = 0  # requests of one served job; 0: none
    stream_prompt: int = 128  # tokens of each
    stream_output: int = 128
    limit_seconds: float = 0.2  # for each measurement of a limit
    read_bytes: int = 1 << 30  # buffer of the read limit; far more than any last-level cache

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("decode_tokens", 1), ("streams", 0)):
            if getattr(self, name) < least:
                raise BadValue(f"{name} must be {least} or more, got {getattr(self, name)}")


QUICK = BenchConfig(
    rounds=3, prompts=(512,), depths=(0, 512), decode_tokens=32, batches=(1, 8), limit_seconds=0.1
)

Kind = Literal["prefill", "decode", "serve"]


@dataclass(frozen=True, slots=True)
class Job:
    """`streams` requests at once, each a prompt of `prompt` tokens answered with `output` tokens, greedily.

    Timed are, by kind: `prefill` from submission to the first token; `decode` all steps after the one that
    gave every stream its first token; `serve` from submission to the last token.
    """

    kind: Kind
    prompt: int
    output: int = 1
    streams: int = 1

    @property
    def length(self) -> int:
        """Positions that each stream fills."""
        return self.prompt + self.output + (self.kind == "decode")

    @property
    def n_tokens(self) -> int:
        """Tokens that the timed part reads (prefill) or writes (decode, serve)."""
        return self.prompt * self.streams if self.kind == "prefill" else self.output * self.streams

    @property
    def name(self) -> str:
        if self.kind == "prefill":
            return f"prefill {self.prompt:,}"
        if self.kind == "serve":
            return f"{self.streams} requests, {self.prompt} in, {self.output} out"
        depth = self.prompt if self.prompt > 1 else 0
        return f"decode at {depth:,}" if self.streams == 1 else f"decode, batch of {self.streams}"


def decode_at(depth: int, output: int, streams: int = 1) -> Job:
    """Depth 0 is a prompt of one token: something must come first."""
    return Job("decode", max(depth, 1), output, streams)


def jobs_of(config: BenchConfig) -> list[Job]:
    """Every job of a run, once. A batch of one is decoding at depth 0."""
    jobs = [Job("prefill", n) for n in config.prompts]
    jobs += [decode_at(depth, config.decode_tokens) for depth in config.depths]
    jobs += [decode_at(0, config.decode_tokens, n) for n in config.batches]
    if config.streams:
        jobs.append(Job("serve", config.stream_prompt, config.stream_output, config.streams))
    return list(dict.fromkeys(jobs))


@dataclass(frozen=True, slots=True)
class Limits:
    """What the machine did at best, measured a moment ago."""

    read_gb_s: float  # 1e9 bytes per second
    int8_tops: float  # 1e12 operations per second, a multiply-accumulate being two
    bf16_tflops: float


@dataclass(frozen=True, slots=True)
class Work:
    """Bytes and multiply-accumulates that a job cannot do without."""

    read_bytes: float
    int8_macs: int
    float_macs: int

    def read_seconds(self, limits: Limits) -> float:
        return self.read_bytes / (limits.read_gb_s * 1e9)

    def multiply_seconds(self, limits: Limits) -> float:
        int8 = self.int8_macs / (limits.int8_tops * 1e12)
        return 2 * (int8 + self.float_macs / (limits.bf16_tflops * 1e12))


@dataclass(frozen=True, slots=True)
class ModelCost:
    """The sizes of a model that `work` needs."""

    weight_bytes: int  # read by every step: all matrices and norms, the embedding table only as output head
    int8_macs: int  # per token, in quantized matrices, without the output head
    float_macs: int  # likewise, in matrices of floats
    head_macs: int  # of the output head, per row of logits
    head_is_float: bool
    cache_bytes: float  # of keys and values, per position
    attention_macs: int  # per position looked at, all layers: queries times keys, and weights times values
    expert_bytes: int = 0  # of one expert of each layer that has some, beside weight_bytes
    n_experts: int = 1
    n_active: int = 1  # experts that a token is sent to; their macs are among those above

    def work(self, job: Job) -> Work:
        """The timed part of `job`. Every step reads the weights once and all keys and values before it."""
        if job.kind == "prefill":
            return self._prefill(job.prompt, job.streams)
        first = job.prompt + (job.kind == "decode")  # positions that the first timed step looks at
        n_steps = job.output if job.kind == "decode" else job.output - 1
        looked_at = job.streams * (n_steps * first + n_steps * (n_steps - 1) // 2)
        decode = self._work(
            n_steps * self._step_bytes(job.streams) + looked_at * self.cache_bytes,
            n_tokens=job.streams * n_steps,
            n_logits=job.streams * n_steps,
            looked_at=looked_at,
        )
        if job.kind == "decode":
            return decode
        prefill = self._prefill(job.prompt, job.streams)
        return Work(
            prefill.read_bytes + decode.read_bytes,
            prefill.int8_macs + decode.int8_macs,
            prefill.float_macs + decode.float_macs,
        )

    def steps(self, n_steps: int, n_tokens: int, n_logits: int) -> Work:
        """Any steps that computed `n_tokens` in all, without what attention takes."""
        if not n_steps:
            return Work(0.0, 0, 0)
        read = n_steps * self._step_bytes(n_tokens / n_steps)
        return self._work(read, n_tokens=n_tokens, n_logits=n_logits, looked_at=0)

    def _prefill(self, n: int, streams: int) -> Work:
        return self._work(
            self._step_bytes(n * streams),
            n_tokens=n * streams,
            n_logits=streams,
            looked_at=streams * n * (n + 1) // 2,
        )

    def _step_bytes(self, n_tokens: float) -> float:
        """Weights that a step reads: of the experts, as many as an even router sends so many tokens to."""
        missed = float((1 - self.n_active / self.n_experts) ** n_tokens)
        return self.weight_bytes + self.n_experts * (1 - missed) * self.expert_bytes

    def _work(self, read_bytes: float, n_tokens: int, n_logits: int, looked_at: int) -> Work:
        """Attention counts with whatever most of the model is multiplied with."""
        int8, floats = self.int8_macs * n_tokens, self.float_macs * n_tokens
        attention, head = self.attention_macs * looked_at, self.head_macs * n_logits
        if self.int8_macs >= self.float_macs:
            int8 += attention
        else:
            floats += attention
        return Work(
            read_bytes,
            int8 + (0 if self.head_is_float else head),
            floats + (head if self.head_is_float else 0),
        )


def cost_of(
    checkpoint: Checkpoint, cache_type: str, bytes_of: Callable[[RawTensor], int] | None = None
) -> ModelCost:
    """As the file has the weights; `bytes_of` says what they take where they are multiplied as floats."""
    cfg: ModelConfig = checkpoint.config
    n_experts, n_active = (cfg.experts.n_experts, cfg.experts.n_active) if cfg.experts else (1, 1)
    head = "tok_embeddings" if cfg.tied else "output"
    macs = {True: 0, False: 0}  # by whether the matrix holds floats
    weight_bytes = expert_bytes = 0
    for name, tensor in checkpoint.tensors.items():
        if name in ("tok_embeddings", "output") and name != head:
            continue
        n_bytes = bytes_of(tensor) if bytes_of else tensor.n_bytes
        if len(tensor.shape) == 3:
            expert_bytes += n_bytes // n_experts
            is_float = bytes_of is not None or tensor.kind in FLOAT_KINDS
            macs[is_float] += prod(tensor.shape) // n_experts * n_active
            continue
        weight_bytes += n_bytes
        if name != head and len(tensor.shape) == 2:
            macs[bytes_of is not None or tensor.kind in FLOAT_KINDS] += prod(tensor.shape)
    return ModelCost(
        weight_bytes=weight_bytes,
        int8_macs=macs[False],
        float_macs=macs[True],
        head_macs=prod(checkpoint.tensors[head].shape),
        head_is_float=bytes_of is not None or checkpoint.tensors[head].kind in FLOAT_KINDS,
        cache_bytes=2 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim * CACHE_BYTES[cache_type],
        attention_macs=2 * cfg.n_layers * cfg.n_heads * cfg.head_dim,
        expert_bytes=expert_bytes,
        n_experts=n_experts,
        n_active=n_active,
    )
