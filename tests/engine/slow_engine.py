"""The slow, plain versions that the engine is held to: sort everything, one request at a time, no cache."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from puna.core import FinishReason, Request, SamplingParams
from puna.engine.mock import MockExecutor
from puna.engine.sampling import uniform


def adjusted(
    logits_V: NDArray[np.float32],
    p: SamplingParams,
    prompt: Sequence[int],
    output: Sequence[int],
    ends: set[int],
) -> NDArray[np.float64]:
    x_V = logits_V.astype(np.float64)
    for token, bias in p.logit_bias.items():
        x_V[token] += bias
    seen: Sequence[int] = [*prompt, *output]
    counted = output
    if p.penalty_window is not None:
        seen = counted = seen[max(0, len(seen) - p.penalty_window) :]
    for token in set(seen):
        x_V[token] = (
            x_V[token] / p.repetition_penalty if x_V[token] > 0 else x_V[token] * p.repetition_penalty
        )
    for token, n in Counter(counted).items():
        x_V[token] -= p.frequency_penalty * n + p.presence_penalty
    if len(output) < p.min_tokens:
        x_V[list(ends)] = -np.inf
    return x_V


def kept_probabilities(x_V: NDArray[np.float64], p: SamplingParams) -> NDArray[np.float64]:
    """Probabilities after temperature and every filter, each of which renormalises."""
    p_V = softmax(x_V / p.temperature)
    rank_V = np.lexsort((np.arange(len(p_V)), -p_V))  # most likely first, lower id first
    if p.top_k:
        p_V[rank_V[p.top_k :]] = 0
        p_V /= p_V.sum()
    if p.top_p < 1:
        before_V = np.cumsum(p_V[rank_V]) - p_V[rank_V]
        p_V[rank_V[before_V >= p.top_p]] = 0
        p_V /= p_V.sum()
    if p.min_p > 0:
        p_V[p_V < p.min_p * p_V.max()] = 0
        p_V /= p_V.sum()
    if p.typical_p < 1:
        surprise_V = np.full(len(p_V), np.inf)
        surprise_V[p_V > 0] = -np.log(p_V[p_V > 0])
        entropy = (p_V[p_V > 0] * surprise_V[p_V > 0]).sum()
        rank_V = np.lexsort((np.arange(len(p_V)), np.abs(surprise_V - entropy)))
        before_V = np.cumsum(p_V[rank_V]) - p_V[rank_V]
        p_V[rank_V[before_V >= p.typical_p]] = 0
        p_V /= p_V.sum()
    return p_V


def softmax(x_V: NDArray[np.float64]) -> NDArray[np.float64]:
    w_V = np.exp(x_V - x_V.max())
    result: NDArray[np.float64] = w_V / w_V.sum()
    return result


def choose(x_V: NDArray[np.float64], p: SamplingParams, u: float) -> int:
    if p.temperature == 0:
        return int(np.argmax(x_V))
    return int(np.flatnonzero(np.cumsum(kept_probabilities(x_V, p)) > u)[0])


@dataclass
class Answer:
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    prompt_logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason = "length"
    stop: int | None = None


def answer(model: MockExecutor, request: Request, capacity: int) -> Answer:
    """What the request must give, whatever else runs. Its seed must be set unless it is greedy."""
    p, result = request.params, Answer()
    ends = set(p.stop_ids) | (set() if p.ignore_end else set(request.end_ids))
    tokens = array("i", request.prompt)
    for n in range(1, len(tokens)):
        row_V = softmax(model.logits(tokens[:n], request.images, adapter=request.adapter).astype(np.float64))
        result.prompt_logprobs.append(float(np.log(row_V[tokens[n]])))
    limit = min(max(capacity, len(tokens) + 1), len(tokens) + (p.max_tokens or capacity))
    while len(tokens) < limit:
        row_V = model.logits(tokens, request.images, adapter=request.adapter)
        x_V = adjusted(row_V, p, request.prompt, result.tokens, ends)
        token = choose(x_V, p, uniform(p.seed or 0, len(tokens)))
        if token in ends:
            result.finish_reason, result.stop = "stop", token
            break
        result.logprobs.append(float(np.log(softmax(row_V.astype(np.float64))[token])))
        result.tokens.append(token)
        tokens.append(token)
    return result
