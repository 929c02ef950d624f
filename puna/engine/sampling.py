"""Sampling: from a row of logits to a token.

A choice is a pure function of the row, the request's parameters and tokens so far, its seed, and the
position: not of the other rows of the step, so that batching, preemption and speculation never change an
answer.

The token drawn for u in [0, 1) is the first, in order of ids, at which the running sum of the kept
probabilities exceeds u. Sorting happens only to find where top-p and typical cut, and only among
candidates; the property tests hold all of this to a version that sorts everything in float64.

Shapes: V vocabulary, N candidates kept (z: their logits less the largest, over the temperature), S token
ids seen so far, G groups of the vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import inf, isfinite, log, nan

import numpy as np
from numpy.typing import NDArray

from puna.core import SamplingParams, TokenLogprob

Ids = NDArray[np.intp]
Mask = NDArray[np.bool_]
Doubles = NDArray[np.float64]

_GREEDY_BELOW = 1e-5  # temperatures at which float32 weights of all but the largest logit vanish
_LEAST = -700.0  # exp of less is about 0 in float64, or masked
_GROUP = 256  # ids per group when drawing from the whole vocabulary
_MAX_SORTED = 1024  # candidates
_N_BUCKETS = 4096
_MASK64 = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


def _mix64(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), multiple of 2^-53, for every (seed modulo 2^64, position).

    Output `position` of the generator splitmix64 (Steele, Lea and Flood 2014), its state scrambled from
    the seed so that neighbouring seeds do not give shifted copies of one stream.
    """
    state = _mix64((seed + _GAMMA) & _MASK64)
    return (_mix64((state + (position + 1) * _GAMMA) & _MASK64) >> 11) * 2.0**-53


class SamplingState:
    """What choosing the next token of one request needs to know beside the logits.

    `seed` is the resolved one; `end_ids` must not be chosen before params.min_tokens.
    """

    def __init__(
        self, params: SamplingParams, prompt: Iterable[int], end_ids: Iterable[int], seed: int
    ) -> None:
        self.params = params
        self.seed = seed
        self.is_greedy = params.temperature < _GREEDY_BELOW
        self.has_penalties = (
            params.repetition_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0
        )
        self.bias_ids = np.fromiter(params.logit_bias.keys(), np.intp)
        self.biases = np.fromiter(params.logit_bias.values(), np.float32)
        self.end_ids = np.fromiter(end_ids, np.intp)
        self.n_output = 0
        self.is_adjusted = bool(self.has_penalties or params.logit_bias or params.min_tokens)
        # argmax is enough
        self.is_plain = self.is_greedy and not self.is_adjusted and params.logprobs is None
        self._slot_of: dict[int, int] = {}
        self._seen_S = np.empty(0, np.intp)
        self._counts_S = np.empty(0, np.float32)  # occurrences in the output
        self._recent: deque[int] | None = None  # slots of the tokens in the window, where there is one
        if params.penalty_window is not None and self.has_penalties:
            self._recent = deque()
            for token in prompt:
                self._count(token)
        elif params.repetition_penalty != 1:
            for token in prompt:
                self._slot(token)

    def note(self, token: int) -> None:
        """`token` was chosen."""
        self.n_output += 1
        if self.has_penalties:
            self._count(token)

    def _count(self, token: int) -> None:
        """One more of `token`; one less of what leaves the window by that."""
        slot = self._slot(token)
        self._counts_S[slot] += 1
        if self._recent is not None:
            assert self.params.penalty_window is not None
            self._recent.append(slot)
            if len(self._recent) > self.params.penalty_window:
                self._counts_S[self._recent.popleft()] -= 1

    def adjust(self, logits_V: NDArray[np.float32]) -> None:
        """Apply bias, penalties and the minimum length in place."""
        p = self.params
        logits_V[self.bias_ids] += self.biases
        if self.has_penalties:
            n_seen = len(self._slot_of)
            seen_S, counts_S = self._seen_S[:n_seen], self._counts_S[:n_seen]
            if self._recent is not None:
                seen_S, counts_S = seen_S[counts_S > 0], counts_S[counts_S > 0]
            x_S = logits_V[seen_S]
            x_S = np.where(x_S > 0, x_S / p.repetition_penalty, x_S * p.repetition_penalty)
            logits_V[seen_S] = x_S - p.frequency_penalty * counts_S - p.presence_penalty * (counts_S > 0)
        if self.n_output < p.min_tokens:
            logits_V[self.end_ids] = -np.inf

    def _slot(self, token: int) -> int:
        """Index of `token` in the arrays of seen ids, which grow by doubling."""
        slot = self._slot_of.setdefault(token, len(self._slot_of))
        if slot == len(self._seen_S):
            self._seen_S = np.resize(self._seen_S, max(64, 2 * slot))
            self._counts_S = np.append(self._counts_S, np.zeros(max(64, slot), np.float32))
        self._seen_S[slot] = token
        return slot


class Sampler:
    """Chooses tokens from rows of `vocab_size` logits. Holds scratch arrays: one per thread."""

    def __init__(self, vocab_size: int) -> None:
        self._adjusted_V = np.empty(vocab_size, np.float32)
        self._masked_V = np.empty(vocab_size, np.float32)
        self._weights_V = np.empty(vocab_size, np.float32)
        self._wide_V = np.empty(vocab_size, np.float64)

    def choose(
        self,
        logits_V: NDArray[np.float32],
        state: SamplingState,
        position: int,
        mask: NDArray[np.uint8] | None = None,
    ) -> int | None:
        """The token at `position` of the sequence, given the logits after the token before it.

        With a `mask` (bits as in core.TokenGrammar) it is one whose bit is set; None if there is none left.
        """
        if state.is_adjusted:
            np.copyto(self._adjusted_V, logits_V)
            logits_V = self._adjusted_V
            state.adjust(logits_V)
        if mask is not None:
            logits_V = self._masked(logits_V, mask)
        best = int(logits_V.argmax())
        largest = float(logits_V[best])
        if mask is not None and largest == -inf:
            return None
        if state.is_greedy or not isfinite(largest):  # not finite: a broken model must not hang the sampler
            return best
        return self._draw(logits_V, largest, state.params, uniform(state.seed, position))

    def _masked(self, logits_V: NDArray[np.float32], mask: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The row with -inf where the mask has no bit; valid until the next call."""
        allowed_V = np.unpackbits(mask, count=len(logits_V), bitorder="little").view(np.bool_)
        self._masked_V.fill(-inf)
        np.copyto(self._masked_V, logits_V, where=allowed_V)
        return self._masked_V

    def logprob(
        self, logits_V: NDArray[np.float32], token: int, n_top: int, ids: Iterable[int] = ()
    ) -> TokenLogprob:
        """Log-softmax in float64 of a row, at `token`, the n_top largest (ties: lower id first) and `ids`.

        A token that stands for an image has no logit: it is never predicted. NaN for a row that has infinite
        logits or NaN.
        """
        largest = float(logits_V.max())
        if not isfinite(largest):
            return TokenLogprob(token, nan, ())
        np.subtract(logits_V, largest, out=self._wide_V, dtype=np.float64)
        np.exp(self._wide_V, out=self._wide_V)
        offset = largest + log(float(self._wide_V.sum()))
        top: list[tuple[int, float]] = []
        if n_top:
            ids_N = largest_ids(logits_V, n_top)
            x_N = logits_V[ids_N]
            order_N = np.argsort(-x_N, kind="stable")
            top = [(int(ids_N[i]), float(x_N[i]) - offset) for i in order_N]
        top += [(i, float(logits_V[i]) - offset) for i in ids]
        own = float(logits_V[token]) if token < len(logits_V) else -inf
        return TokenLogprob(token, own - offset, tuple(top))

    def _draw(self, logits_V: NDArray[np.float32], largest: float, p: SamplingParams, u: float) -> int:
        """Draw from the row cut down by top-k, top-p, min-p and typical, in this order.

        The first filter in use selects candidates from the whole row; the others then work on few ids.
        """
        total = 0.0
        if 0 < p.top_k < len(logits_V):
            ids_N = largest_ids(logits_V, p.top_k)
        elif p.top_p < 1:
            ids_N, total = self._likely(logits_V, largest, p)
        elif p.min_p > 0:
            ids_N = np.flatnonzero(logits_V >= largest + p.temperature * log(p.min_p) - 1e-3)
        elif p.typical_p < 1:
            ids_N = np.arange(len(logits_V))
        else:
            return _draw_from_all(self._weights(logits_V, largest, p.temperature), u)
        z_N = (logits_V[ids_N].astype(np.float64) - largest) / p.temperature
        if z_N.min() < _LEAST:
            ids_N, z_N = _keep(z_N >= _LEAST, ids_N, z_N)
        if p.top_p < 1:
            ids_N, z_N = _keep(_nucleus(z_N, p.top_p, total), ids_N, z_N)
        if p.min_p > 0:
            ids_N, z_N = _keep(z_N >= log(p.min_p), ids_N, z_N)
        if p.typical_p < 1:
            ids_N, z_N = _keep(_typical(z_N, p.typical_p), ids_N, z_N)
        return int(ids_N[_index_at(np.exp(z_N), u)])

    def _weights(
        self, logits_V: NDArray[np.float32], largest: float, temperature: float
    ) -> NDArray[np.float32]:
        """exp((logits - largest) / temperature), not normalised; valid until the next call."""
        w_V = self._weights_V
        np.subtract(logits_V, largest, out=w_V)
        np.multiply(w_V, 1 / temperature, out=w_V)
        return np.exp(w_V, out=w_V)

    def _likely(self, logits_V: NDArray[np.float32], largest: float, p: SamplingParams) -> tuple[Ids, float]:
        """Ids that include the top-p nucleus of the whole row, and the sum of all weights.

        A threshold found by guessing replaces the sort. The last one cannot fail: ids below it weigh less
        than 1 - p together, however many they are.
        """
        w_V = self._weights(logits_V, largest, p.temperature)
        total = float(w_V.sum())
        floor = (1 - p.top_p) / len(w_V)
        ids_N = np.empty(0, np.intp)
        for share in (1e-4, 0.0):
            ids_N = np.flatnonzero(w_V >= max(share, floor) * total)
            if share <= floor or float(w_V[ids_N].sum()) >= p.top_p * total:
                break
        return ids_N, total


def largest_ids(logits_V: NDArray[np.float32], k: int) -> Ids:
    """Ids of the k largest logits, ascending; among equal ones the lower ids.

    The k-th largest of the maxima of many disjoint groups bounds the k-th largest of all from below, and
    is found much faster than by partitioning the whole row.
    """
    k = min(k, len(logits_V))
    n_groups = max(len(logits_V) // 64, 1)
    if k < n_groups:
        maxima_G = logits_V[: len(logits_V) // n_groups * n_groups].reshape(-1, n_groups).max(axis=0)
        bound = np.partition(maxima_G, n_groups - k)[n_groups - k]
    else:
        bound = np.partition(logits_V, len(logits_V) - k)[len(logits_V) - k]
    ids_N = np.flatnonzero(logits_V >= bound)
    order_N = np.argsort(-logits_V[ids_N], kind="stable")
    return np.sort(ids_N[order_N[:k]])


def _keep(mask_N: Mask, ids_N: Ids, z_N: Doubles) -> tuple[Ids, Doubles]:
    return ids_N[mask_N], z_N[mask_N]


def _nucleus(z_N: Doubles, share: float, total: float) -> Mask:
    """Mask of the fewest largest weights exp(z) that reach `share` of the total (Holtzman et al. 2020).

    A total of 0 stands for that of the candidates themselves.
    """
    weights_N = np.exp(z_N)
    return _first_by(-z_N, weights_N, share * (total or float(weights_N.sum())))


def _typical(z_N: Doubles, share: float) -> Mask:
    """Mask of those whose surprise is nearest to the entropy, up to `share` of all (Meister et al. 2022)."""
    weights_N = np.exp(z_N)
    total = float(weights_N.sum())
    surprise_N = log(total) - z_N
    entropy = float((weights_N * surprise_N).sum()) / total
    return _first_by(np.abs(surprise_N - entropy), weights_N, share * total)


def _first_by(keys_N: Doubles, weights_N: Doubles, mass: float) -> Mask:
    """Mask of the entries with the smallest keys (ties: the earlier ones) whose weights reach `mass`.

    Sorts only the entries among which the cut falls, found by dividing the range of keys into buckets.
    """
    mask_N = np.zeros(len(keys_N), np.bool_)
    near = np.arange(len(keys_N))
    if len(keys_N) > _MAX_SORTED:
        least, most = float(keys_N.min()), float(keys_N.max())
        bucket_N = ((keys_N - least) * (_N_BUCKETS / max(most - least, 1e-9))).astype(np.int32)
        sums = np.cumsum(np.bincount(bucket_N, weights_N))
        cut = int(np.searchsorted(sums, mass))
        mask_N = bucket_N < cut
        near = np.flatnonzero(bucket_N == cut)
        mass -= float(sums[cut - 1]) if cut else 0.0
    order = near[np.argsort(keys_N[near], kind="stable")]
    n = int(np.searchsorted(np.cumsum(weights_N[order]), mass)) + 1
    mask_N[order[:n]] = True
    return mask_N


def _index_at(weights_N: Doubles | NDArray[np.float32], u: float) -> int:
    """First index at which the running sum of the weights exceeds the share u of their total."""
    sums_N = np.cumsum(weights_N, dtype=np.float64)
    i = int(np.searchsorted(sums_N, u * sums_N[-1], side="right"))
    return i if i < len(sums_N) else int(np.flatnonzero(weights_N)[-1])  # rounding carried u to 1


def _draw_from_all(weights_V: NDArray[np.float32], u: float) -> int:
    """_index_at over the whole vocabulary: a float64 sum over groups, then one within the group found."""
    n_whole = len(weights_V) // _GROUP * _GROUP
    sums_G = weights_V[:n_whole].reshape(-1, _GROUP).sum(axis=1)
    sums_G = np.append(sums_G, weights_V[n_whole:].sum())
    ends_G = np.cumsum(sums_G, dtype=np.float64)
    g = _index_at(sums_G, u)
    rest = max(0.0, (u * ends_G[-1] - (ends_G[g] - sums_G[g])) / sums_G[g])
    return g * _GROUP + _index_at(weights_V[g * _GROUP : (g + 1) * _GROUP], rest)
