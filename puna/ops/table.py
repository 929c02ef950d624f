"""The op table: the ten or so coarse operations that a Llama is made of.

model/block.py is written over these; reference.py computes them in numpy; runtime/plan.py records them; csrc/
computes the recorded plan. A test of the table runs the cases of cases.py against every implementation.

Shapes: T tokens of the step (all chunks, one after the other), D model width, E output width, H query heads,
K key/value heads, C head width, F feed-forward width, V vocabulary, R rows whose logits are wanted; for
experts alone, E their number.
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

    def head_norm(self, x_THC: T, head_dim: int, eps: float) -> T:
        """rms_norm of every head by itself, without weights -> [T, H*C] (Llama 4's QK norm)."""
        ...

    def temper(self, q_THC: T, temperature: Any) -> T:
        """Multiply row t by 1 + attn_scale * ln(floor((position + 1) / floor_scale) + 1) -> [T, H*C].

        `temperature` is a model.parts.QueryTemperature (Nakanishi 2025).
        """
        ...

    def attend(
        self,
        q_THC: T,
        k_TKC: T,
        v_TKC: T,
        layer: int,
        head_dim: int,
        scale: float,
        chunk: int | None = None,
    ) -> T:
        """Causal attention of each token over its own sequence -> [T, H*C].

        Appends k and v to the cache of `layer`, then softmax(scale * q·k) v over positions 0..own, or with
        `chunk` over those of them with the same position // chunk. Query head h reads key/value head
        h // (H/K) (Ainslie et al. 2023).
        """
        ...

    def swiglu(self, gate_TF: T, up_TF: T) -> T:
        """silu(gate) * up -> [T, F] (Shazeer 2020)."""
        ...

    def experts(self, x_TD: T, router_ED: Any, w1_EFD: Any, w2_EDF: Any, w3_EFD: Any, n_active: int) -> T:
        """Sum over the chosen experts e of w2_e(silu(w1_e s x) * w3_e s x) -> [T, D].

        Chosen are the n_active highest of router x, and s is the sigmoid of its score: it multiplies the
        input of the expert, not the output (llama-models, llama4/moe.py).
        """
        ...

    def select(self, x_TD: T) -> T:
        """Rows after which logits are wanted -> [R, D]."""
        ...
