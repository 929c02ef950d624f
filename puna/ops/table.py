"""The op table: the ten or so coarse operations that a Llama is made of.

model/block.py is written over these; reference.py computes them in numpy; runtime/plan.py records them; csrc/
computes the recorded plan. A test of the table runs the cases of cases.py against every implementation.

Shapes: T tokens of the step (all chunks, one after the other), D model width, E output width, H query heads,
K key/value heads, C head width, F feed-forward width, V vocabulary, R rows whose logits are wanted.
Activations are float32 and two-dimensional: heads lie side by side, so queries are [T, H*C]. Paging, masks,
positions and the cache live behind the step context, which block.py hands on unseen.

No op changes its arguments, except that `attend` writes keys and values of the step to the cache.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

T = TypeVar("T")  # an activation: numpy array, torch tensor, or a numbered buffer while recording


class Ops(Protocol[T]):
    """What every implementation offers. A weight is opaque: `linear` and `embed` know its kind."""

    def embed(self, w_VD: Any) -> T:
        """Rows of the table for the tokens of the step -> [T, D]."""
        ...

    def linear(self, x_TD: T, w_ED: Any) -> T:
        """x @ w.T -> [T, E]. The weight may be quantized, sliced or adapted: its kind says how."""
        ...

    def add(self, a_TD: T, b_TD: T) -> T:
        """Elementwise sum -> [T, D]."""
        ...

    def rms_norm(self, x_TD: T, w_D: Any, eps: float) -> T:
        """x / sqrt(mean(x^2) + eps) * w over the last axis -> [T, D] (Zhang and Sennrich 2019)."""
        ...

    def rope(self, x_THC: T, n_heads: int, freqs_C2: Any) -> T:
        """Rotate the pairs (2i, 2i+1) of each head by position * frequency[i] radians -> [T, n_heads*C].

        Interleaved pairs, as in Meta's checkpoints (Su et al. 2021). `freqs_C2` is a model.rope.RopeTable:
        C/2 frequencies, and the attention factor that multiplies the rotated vector.
        """
        ...

    def attend(self, q_THC: T, k_TKC: T, v_TKC: T, layer: int, head_dim: int, scale: float) -> T:
        """Causal attention of each token over its own sequence -> [T, H*C].

        Appends k and v to the cache of `layer`, then softmax(scale * q·k) v over positions 0..own. Query
        head h reads key/value head h // (H/K) (Ainslie et al. 2023).
        """
        ...

    def swiglu(self, gate_TF: T, up_TF: T) -> T:
        """silu(gate) * up -> [T, F] (Shazeer 2020)."""
        ...

    def select(self, x_TD: T) -> T:
        """Rows after which logits are wanted -> [R, D]."""
        ...
