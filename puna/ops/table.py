"""The op table: the ten or so coarse operations that a Llama is made of.

model/block.py is written over these; reference.py computes them in numpy; runtime/plan.py records them; csrc/
computes the recorded plan. A test of the table runs the cases of cases.py against every implementation.

Shapes: T tokens of the step (all chunks, one after the other), D model width, E output width, H query heads,
K key/value heads, C head width, F feed-forward width, V vocabulary, M embeddings behind it, R rows that are
wanted; for experts alone, E their number; for images, X rows of all tiles, Q values of a patch, S rows that
become one.
Activations are float32 and two-dimensional: heads lie side by side, so queries are [T, H*C]. Paging, masks,
positions and the cache live behind the step context, which block.py hands on unseen.

No op changes its arguments, except that `attend` writes keys and values of the step to the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")  # an activation: numpy array, torch tensor, or a numbered buffer while recording


class Ops(Protocol[T]):
    """What every implementation offers. A weight is opaque: `linear` and `embed` know its kind."""

    def embed(self, w_VD: Any, more_MD: Any = None) -> T:
        """Rows of the table for the tokens of the step -> [T, D].

        Tokens from V on are rows of `more_MD`. Where the step has the embedding of a part of an image for a
        position (Llama 4), it stands in place of the token's.
        """
        ...

    def linear(self, x_TD: T, w_ED: Any, bias_E: Any = None) -> T:
        """x @ w.T + bias -> [T, E]. The weight may be quantized, sliced or adapted: its kind says how.

        Of an adapters.Adaptable, each row gets what the adapter of its sequence adds, if it has one.
        """
        ...

    def add(self, a_TD: T, b_TD: T, gate_1: Any = None) -> T:
        """Elementwise sum -> [T, D]; with a gate a + tanh(gate) * b."""
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

    def head_norm(self, x_THC: T, head_dim: int, eps: float, w_C: Any = None) -> T:
        """rms_norm of every head by itself -> [T, H*C].

        Without weights in Llama 4's QK norm, with those of one head in Llama 3.2's cross-attention.
        """
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

    def cross_attend(self, q_THC: T, layer: int, head_dim: int, scale: float) -> T:
        """Attention of each token over the images that it may look at -> [T, H*C].

        Their keys and values in cross-attention layer `layer` are the step's, as model/vision.py made them.
        Rows of tokens that see no image are zero.
        """
        ...

    def mask_rows(self, x_TD: T) -> T:
        """Zero in the rows of tokens that see no image, x elsewhere -> [T, D]."""
        ...

    def swiglu(self, gate_TF: T, up_TF: T) -> T:
        """silu(gate) * up -> [T, F] (Shazeer 2020)."""
        ...

    def hadamard(self, x_TF: T) -> T:
        """H x / sqrt(F), H being Sylvester's Hadamard matrix: H[i, j] = (-1)^popcount(i & j) -> [T, F].

        F is a power of two, at least 16.
        """
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


class VisionOps(Protocol[T]):
    """What an image encoder is made of. One object serves one image.

    `linear`, `add` and `rope` are those of `Ops`, over the rows of the image's tiles; the position of a row
    is the number of its patch in the tile, -1 for a class token.
    """

    def linear(self, x_XD: T, w_ED: Any, bias_E: Any = None) -> T: ...

    def add(self, a_XD: T, b_XD: T, gate_1: Any = None) -> T: ...

    def rope(self, x_XHC: T, n_heads: int, freqs_C2: Any) -> T: ...

    def given(self, name: str) -> T:
        """What was prepared of the image, a field of model.vision.Tiles -> [X, Q or D].

        "patches": pixels; "positions": what is added before the first layer; "tiles": a vector for each tile.
        """
        ...

    def layer_norm(self, x_XD: T, w_D: Any, bias_D: Any, eps: float) -> T:
        """(x - mean) / sqrt(variance + eps) * w + bias over the last axis -> [X, D] (Ba et al. 2016)."""
        ...

    def gelu(self, x_XF: T) -> T:
        """x * Phi(x), by the error function and not by tanh -> [X, F] (Hendrycks and Gimpel 2016)."""
        ...

    def mask_rows(self, x_XD: T) -> T:
        """Zero in the rows that fill up a tile (Tiles.filling_X), x elsewhere -> [X, D]."""
        ...

    def attend_tiles(self, q_XHC: T, k_XHC: T, v_XHC: T, head_dim: int, scale: float) -> T:
        """Attention in both directions, over the tile or over all of them as Tiles.n_groups says -> [X, H*C].

        Rows of padding (Tiles.padding_X) are seen by the others, and see all but padding (llama-models,
        build_encoder_attention_mask).
        """
        ...

    def join(self, x_XD: T, inner_XD: Sequence[T]) -> T:
        """x, then n others channel by channel -> [X, (1+n)*D].

        Column D + d*n + i is channel d of the i-th.
        """
        ...

    def gather(self, x_XD: T) -> T:
        """The rows that are wanted of the image, as Tiles.wanted_RS has them -> [R, S*D].

        S rows side by side: 1 leaves out padding, more is a pixel shuffle.
        """
        ...
