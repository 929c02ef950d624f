"""What a checkpoint says of itself: shapes and constants, validated; nothing of devices, caches or kernels.

`from_gguf`, `from_hf` and `from_meta` read the three descriptions in use. Each refuses by name a setting that
would change the model and that Puna does not compute.

Errors: `Unsupported` for a well-formed checkpoint that is not a plain Llama text decoder, `BadFile` for a
missing key, a wrong type or a value outside its range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from puna.core import BadFile, Unsupported
from puna.model.parts import ExpertsConfig, QueryTemperature
from puna.model.read_llama4 import gguf_llama4, hf_llama4, is_meta_llama4, meta_llama4
from puna.model.read_mllama import META_KEYS as MLLAMA_META_KEYS
from puna.model.read_mllama import N_IMAGE_EMBEDDINGS, gguf_mllama, hf_mllama, is_meta_mllama, meta_mllama
from puna.model.record import Record, require, whole
from puna.model.scaling import RopeScaling, gguf_scaling, hf_scaling
from puna.model.vision_config import Llama4VisionConfig, Llama32VisionConfig, VisionConfig

__all__ = [
    "ExpertsConfig",
    "Llama4VisionConfig",
    "Llama32VisionConfig",
    "ModelConfig",
    "QueryTemperature",
    "RopeScaling",
    "VisionConfig",
    "from_gguf",
    "from_hf",
    "from_meta",
]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Any Llama: the text decoder, and what sees images for it.

    With the defaults of the optional fields it is a dense decoder of Llama 1 to 3.3. Executors refuse by
    `Unsupported` what they do not compute; this only describes.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    context_length: int  # positions the checkpoint was made for
    tied: bool  # output shares the embedding table
    rope_scaling: RopeScaling | None = None
    experts: ExpertsConfig | None = None  # ffn_dim is then that of the layers without experts
    attention_chunk: int | None = None  # layers with rope see only their own chunk of so many positions
    no_rope_every: int | None = None  # layers n-1, 2n-1, ... have no rope and see all positions
    qk_norm: bool = False  # RMS norm without weights of every query and key head, in layers with rope
    query_temperature: QueryTemperature | None = None  # of layers without rope
    cross_attention: tuple[int, ...] = ()  # one cross-attention layer to the images before each of these
    n_image_embeddings: int = 0  # rows behind the vocabulary that can be read and not be predicted
    vision: VisionConfig | None = None
    ffn_hadamard: bool = False  # w2 multiplies the Hadamard transform of its input (SpinQuant's R4)
    lora_rank: int = 0  # of the adapters that all matrices of all layers have; 0: none

    def has_experts(self, layer: int) -> bool:
        return self.experts is not None and (layer + 1) % self.experts.every == 0

    def has_rope(self, layer: int) -> bool:
        return self.no_rope_every is None or (layer + 1) % self.no_rope_every != 0

    def chunk(self, layer: int) -> int | None:
        """Positions of a chunk of that layer's attention; None where a token sees all that precede it."""
        return self.attention_chunk if self.has_rope(layer) else None

    def __post_init__(self) -> None:
        sizes = (
            "dim",
            "n_layers",
            "n_heads",
            "n_kv_heads",
            "head_dim",
            "ffn_dim",
            "vocab_size",
            "context_length",
        )
        for name in sizes:
            value = getattr(self, name)
            require(0 < value < 2**31, name, "from 1 to 2147483647", value)
        groups = (self.n_heads, self.n_kv_heads)
        require(
            groups[0] % groups[1] == 0, "n_heads, n_kv_heads", "a whole number of query heads each", groups
        )
        require(self.head_dim % 2 == 0, "head_dim", "even, as rotary pairs need", self.head_dim)
        require(0 < self.norm_eps < 1, "norm_eps", "above 0 and below 1", self.norm_eps)
        require(isfinite(self.rope_theta) and self.rope_theta > 1, "rope_theta", "above 1", self.rope_theta)
        if self.rope_scaling is not None:
            self._check_factors(self.rope_scaling)
        self._check_optional()

    def _check_optional(self) -> None:
        for name in ("attention_chunk", "no_rope_every"):
            value = getattr(self, name)
            require(value is None or 0 < value < 2**31, name, "from 1 to 2147483647", value)
        require(
            0 <= self.n_image_embeddings < 2**16,
            "n_image_embeddings",
            "from 0 to 65535",
            self.n_image_embeddings,
        )
        layers = self.cross_attention
        good = all(0 <= i < self.n_layers for i in layers) and tuple(sorted(set(layers))) == layers
        require(good, "cross_attention", f"rising numbers of layers below {self.n_layers}", layers)
        require(0 <= self.lora_rank < 2**16, "lora_rank", "from 0 to 65535", self.lora_rank)
        if self.ffn_hadamard or self.lora_rank:
            plain = self.experts is None and not layers and self.vision is None
            require(plain, "quantization_args, lora_args", "those of a dense text model", "others")
        if self.ffn_hadamard:
            good = self.ffn_dim >= 16 and self.ffn_dim & (self.ffn_dim - 1) == 0
            require(good, "ffn_dim", "a power of two from 16, as a Hadamard transform needs", self.ffn_dim)
        if self.vision is not None:
            expected = "given for Llama 3.2 Vision and absent for Llama 4"
            crosses = isinstance(self.vision, Llama32VisionConfig)
            require(bool(layers) == crosses, "cross_attention", expected, layers)

    def _check_factors(self, scaling: RopeScaling) -> None:
        needed = {"factors": ("factors",), "longrope": ("short_factors", "long_factors")}
        expected = f"{self.head_dim // 2} numbers (head_dim / 2)"
        for name in ("factors", "short_factors", "long_factors"):
            n = len(getattr(scaling, name))
            good = n == self.head_dim // 2 or (n == 0 and name not in needed.get(scaling.kind, ()))
            require(good, f"rope scaling {name}", expected, f"{n} numbers")


_GGUF_ARCHITECTURES = ("llama", "llama4", "mllama")

# keys of an architecture that would change what the model computes, with the value that does not
_GGUF_NEUTRAL = {
    "attention.causal": (True, "bidirectional attention"),
    "attention.clamp_kqv": (0.0, "clamped attention inputs"),
    "attention.max_alibi_bias": (0.0, "ALiBi positions"),
    "attention.scale": (0.0, "another attention scale"),
    "attn_logit_softcapping": (0.0, "soft-capped attention"),
    "final_logit_softcapping": (0.0, "soft-capped logits"),
    "logit_scale": (1.0, "scaled logits"),
    "residual_scale": (1.0, "scaled residuals"),
    "embedding_scale": (1.0, "scaled embeddings"),
    "use_parallel_residual": (False, "parallel residuals"),
    "rope.scaling.alpha": (0.0, "NTK-alpha scaling"),
    "rope.scaling.yarn_ext_factor": (1.0, "a partial YaRN blend"),
    "rope.scaling.yarn_attn_factor": (1.0, "another YaRN attention factor"),
}
_GGUF_NEUTRAL_DENSE = {
    "expert_count": (0, "a mixture of experts"),
    "attention.sliding_window": (0, "sliding-window attention"),
}


def from_gguf(
    metadata: Mapping[str, Any],
    tensor_shapes: Mapping[str, tuple[int, ...]],
    read_floats: Callable[[str], Sequence[float]] | None = None,
) -> ModelConfig:
    """Read GGUF metadata (ggml's docs/gguf.md) of architecture `llama`, `llama4` or `mllama`.

    `tensor_shapes` holds the file's own tensor names with row-major shapes: a matrix that makes E outputs of
    D inputs is (E, D). `read_floats` gives the values of a one-dimensional float tensor by name; it is called
    only for rope factors, and must be given where the file has them.
    """
    record = Record(metadata, "GGUF metadata")
    arch = record.text("general.architecture")
    if arch not in _GGUF_ARCHITECTURES:
        raise Unsupported(
            f"the file holds a model of architecture {arch!r}, and Puna reads "
            f"{', '.join(map(repr, _GGUF_ARCHITECTURES))}; choose a Llama checkpoint"
        )
    neutral = _GGUF_NEUTRAL if arch == "llama4" else _GGUF_NEUTRAL | _GGUF_NEUTRAL_DENSE
    for key, (value, meaning) in neutral.items():
        record.refuse_unless(f"{arch}.{key}", value, meaning)
    n_layers = record.integer(f"{arch}.block_count")
    require(n_layers > 0, f"{arch}.block_count", "1 or more", n_layers)
    n_rows = _gguf_rows(record, tensor_shapes, arch, n_layers)
    n_heads = record.uniform(f"{arch}.attention.head_count")
    dim = record.integer(f"{arch}.embedding_length")
    head_dim = _gguf_head_dim(record, arch, dim, n_heads)
    context_length = record.integer(f"{arch}.context_length")
    fields: dict[str, Any] = {
        "dim": dim,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": record.uniform(f"{arch}.attention.head_count_kv", n_heads),
        "head_dim": head_dim,
        "ffn_dim": record.uniform(f"{arch}.feed_forward_length"),
        "vocab_size": n_rows,
        "norm_eps": record.number(f"{arch}.attention.layer_norm_rms_epsilon"),
        "rope_theta": record.number(f"{arch}.rope.freq_base", 10000.0),
        "context_length": context_length,
        "tied": "output.weight" not in tensor_shapes,
        "rope_scaling": gguf_scaling(record, arch, tensor_shapes, read_floats, head_dim, context_length),
    }
    if arch == "llama4":
        fields |= gguf_llama4(record)
    elif arch == "mllama":
        fields |= gguf_mllama(record)
        fields["vocab_size"] -= fields["n_image_embeddings"]
    return ModelConfig(**fields)


def _gguf_rows(record: Record, tensor_shapes: Mapping[str, tuple[int, ...]], arch: str, n_layers: int) -> int:
    """Rows of the embedding table; also that the last layer promised is there, which bounds later loops."""
    for name in ("token_embd.weight", f"blk.{n_layers - 1}.attn_norm.weight"):
        if name not in tensor_shapes:
            raise BadFile(
                f"a Llama of {n_layers} layers has a tensor {name!r}, and the file has none; "
                "if it is one part of a split file, open its first part with the others beside it"
            )
    shape = tensor_shapes["token_embd.weight"]
    require(len(shape) == 2, "token_embd.weight", "a matrix", f"shape {shape}")
    rows = shape[0]
    stated = record.integer(f"{arch}.vocab_size", rows)
    if stated != rows and not (arch == "mllama" and stated == rows - N_IMAGE_EMBEDDINGS):
        raise BadFile(
            f"{arch}.vocab_size is {stated}, and token_embd.weight has {rows} rows; the file is "
            "inconsistent, convert or download it again"
        )
    return rows


def _gguf_head_dim(record: Record, arch: str, dim: int, n_heads: int) -> int:
    derived = dim // n_heads if n_heads > 0 and dim % n_heads == 0 else None
    head_dim = record.integer(f"{arch}.attention.key_length", derived)
    for key in (f"{arch}.attention.value_length", f"{arch}.rope.dimension_count"):
        found = record.integer(key, head_dim)
        if found != head_dim:
            raise Unsupported(
                f"{key} is {found}, and Puna runs only models where it equals the head width, {head_dim}"
            )
    return head_dim


_HF_READERS: Mapping[str, Callable[[Record], dict[str, Any]]] = {
    "llama4": hf_llama4,
    "llama4_text": hf_llama4,
    "mllama": hf_mllama,
    "mllama_text_model": hf_mllama,
}


def from_hf(config: Mapping[str, Any]) -> ModelConfig:
    """Read the config.json of a `llama` (transformers 4.28 to 5), `llama4`, `mllama`, or of their text parts.

    Absent keys take the defaults of transformers' own classes. Rope settings may be spelled `rope_scaling`
    with `type` or `rope_type` beside a `rope_theta`, or `rope_parameters` holding all of it.
    """
    record = Record(config, "config.json")
    model_type = record.text("model_type")
    if model_type in _HF_READERS:
        return ModelConfig(**_HF_READERS[model_type](record))
    if model_type != "llama":
        known = ", ".join(map(repr, ("llama", *_HF_READERS)))
        raise Unsupported(
            f"config.json names model_type {model_type!r}, and Puna reads {known}; choose a Llama checkpoint"
        )
    for key in ("attention_bias", "mlp_bias"):
        record.refuse_unless(key, False, "projections with bias")
    record.refuse_unless("hidden_act", "silu", "another activation")
    record.refuse_unless("partial_rotary_factor", 1.0, "partly rotated heads")
    dim, n_heads = record.integer("hidden_size"), record.integer("num_attention_heads")
    context_length = record.integer("max_position_embeddings", 2048)
    rope = record.section("rope_scaling" if config.get("rope_scaling") else "rope_parameters")
    return ModelConfig(
        dim=dim,
        n_layers=record.integer("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=record.integer("num_key_value_heads", n_heads),
        head_dim=record.integer("head_dim", dim // max(n_heads, 1)),
        ffn_dim=record.integer("intermediate_size"),
        vocab_size=record.integer("vocab_size"),
        norm_eps=record.number("rms_norm_eps", 1e-6),
        rope_theta=rope.number("rope_theta", record.number("rope_theta", 10000.0)),
        context_length=context_length,
        tied=record.flag("tie_word_embeddings", False),
        rope_scaling=hf_scaling(rope, record, context_length),
    )


_META_KEYS = (
    "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps",
    "rope_theta", "use_scaled_rope", "max_batch_size", "max_seq_len",
)  # fmt: skip


def from_meta(
    params: Mapping[str, Any],
    vocab_size: int,
    *,
    context_length: int | None = None,
    rope_factor: float = 8.0,
    tied: bool = False,
) -> ModelConfig:
    """Read the params.json beside Meta's consolidated.*.pth (Llama 1 to 4).

    `vocab_size` is the number of rows of tok_embeddings (the file may say -1). Three things are not in the
    file, so whoever knows the release gives them: `context_length` in positions (else 131072 with
    use_scaled_rope, 8192 with a rope_theta, and 2048), `rope_factor` of Llama 3.1's scaling (Meta's code: 8;
    the 3.2 models as published on the hub: 32), and whether the output is `tied`. Llama 4 has a rope factor
    of its own, and without `context_length` that of the published Scout or Maverick.
    """
    record = Record(params, "params.json")
    stated = record.integer("vocab_size", -1)
    if stated not in (-1, vocab_size):
        raise BadFile(
            f"params.json states a vocabulary of {stated}, and tok_embeddings has {vocab_size} rows; "
            "download the checkpoint again"
        )
    if is_meta_llama4(record):
        return ModelConfig(**meta_llama4(record, vocab_size, context_length, tied))
    sees = is_meta_mllama(record)
    record.refuse_unknown(_META_KEYS + (MLLAMA_META_KEYS if sees else ()))
    dim, n_heads, n_layers = record.integer("dim"), record.integer("n_heads"), record.integer("n_layers")
    scaled = record.flag("use_scaled_rope", False)
    guess = 131072 if scaled else 8192 if record.has("rope_theta") else 2048
    return ModelConfig(
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=record.integer("n_kv_heads", n_heads),
        head_dim=dim // max(n_heads, 1),
        ffn_dim=_meta_ffn_dim(
            dim, record.integer("multiple_of", 256), record.number("ffn_dim_multiplier", 1.0)
        ),
        vocab_size=vocab_size,
        norm_eps=record.number("norm_eps"),
        rope_theta=record.number("rope_theta", 10000.0),
        context_length=context_length or guess,
        tied=tied,
        rope_scaling=RopeScaling("llama3", factor=rope_factor) if scaled else None,
        **(meta_mllama(record, n_layers) if sees else {}),
    )


def _meta_ffn_dim(dim: int, multiple_of: int, multiplier: float) -> int:
    """Two thirds of 4 dim, times the multiplier, rounded up to the multiple (llama-models, FeedForward)."""
    require(multiple_of > 0, "multiple_of", "above 0", multiple_of)
    require(0 < dim < 2**31, "dim", "from 1 to 2147483647", dim)
    ffn_dim = whole(multiplier * int(2 * (4 * dim) / 3), "ffn_dim")
    return multiple_of * -(-ffn_dim // multiple_of)
