"""The CPU executor: packs a checkpoint's weights, lowers the fused plan to C++, runs steps.

Everything per token happens in puna._native on its own threads with the GIL released; Python is entered once
a step.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna import _native
from puna.core import BadValue, Batch, EngineClosed, Image, Unsupported, closest
from puna.model.config import ModelConfig
from puna.model.names import adaptable_shapes
from puna.model.rope import RopeTable
from puna.model.sizes import local_layers, local_positions, local_window
from puna.runtime.cpu import default_threads, new_plan
from puna.runtime.images import IMAGE_BYTES, max_images
from puna.runtime.native_adapters import NativeAdapters, Prepared, pack
from puna.runtime.native_blocks import MovableBlocks, cache_format
from puna.runtime.passes import assign_buffers, fuse, without_output
from puna.runtime.plan import Node, Plan, Value, WeightRef, record
from puna.weights.adapter import Adapter
from puna.weights.blocks.quant import dequantize
from puna.weights.blocks.recode import kernel_kind, recode
from puna.weights.blocks.tensor import RawTensor

BLOCK_TOKENS: int = _native.BLOCK_TOKENS
SPAN: int = _native.SPAN  # attention computes in spans from the beginning of a block table
CACHE_TYPES = ("bf16", "f16", "f32", "q8_0")
_SMALL = 32 << 20  # bytes; below, the order of reading stays
_FORMS = {"f32": 0, "bf16": 1, "q8": 2}


def cache_bytes_per_token(cfg: ModelConfig, cache_type: str) -> int:
    """Bytes of the keys and values of one position in all layers."""
    return int(_native.cache_bytes_per_token(cache_type, cfg.n_layers, cfg.n_kv_heads, cfg.head_dim))


def pack_weight(kind: str, shape: tuple[int, int], data: NDArray[np.uint8]) -> Any:
    """One matrix [rows, cols] of file blocks, packed on its own."""
    stored = kernel_kind(kind)
    arena = _native.Arena(_native.packed_bytes(stored, *shape) + 64)
    return _native.pack_matrix(arena, stored, *shape, recode(np.ascontiguousarray(data).reshape(-1), kind))


class NativeExecutor(MovableBlocks):
    """core.Executor on the CPU.

    `cache_tokens` positions of keys and values are kept as `cache_type`; memory is taken as they fill.
    Encoded images are kept up to `image_bytes`, and longer while a step needs them.
    A step runs at most `max_tokens` tokens and returns at most `max_logits` rows. Raises BadValue for an
    unknown target or cache type, Unsupported for a shape that no kernel has.
    """

    block_size = BLOCK_TOKENS

    def __init__(
        self,
        cfg: ModelConfig,
        tensors: Mapping[str, RawTensor],
        rope: RopeTable,
        *,
        cache_tokens: int,
        cache_type: str = "bf16",
        threads: int | None = None,
        max_tokens: int = 512,
        max_logits: int = 512,
        target: str = "",
        progress: Callable[[int], None] | None = None,
        image_bytes: int = IMAGE_BYTES,
    ) -> None:
        _check(cfg, target, cache_type)
        self.vocab_size, self.embedding_dim = cfg.vocab_size, cfg.dim
        self.n_token_ids = cfg.vocab_size + cfg.n_image_embeddings
        self.max_images = max_images(cfg)
        self.context_length = cfg.context_length
        self.n_blocks = -(-cache_tokens // BLOCK_TOKENS)
        self.max_tokens = max_tokens
        self.threads = threads or default_threads()
        refs = {name: WeightRef(name, kernel_kind(t.kind), tuple(t.shape)) for name, t in tensors.items()}
        self.n_local_blocks = self.local_window = 0
        window = local_window(cfg, SPAN)
        n_local = -(-local_positions(window, cache_tokens, max_tokens) // BLOCK_TOKENS)
        if n_local < self.n_blocks:
            self.n_local_blocks, self.local_window = n_local, window
        plans = _plans(cfg, refs, rope)
        sizes = (
            max_tokens,
            max_logits,
            cache_type,
            cfg.n_layers,
            self.n_blocks,
            cfg.n_kv_heads,
            cfg.head_dim,
            self.n_local_blocks,
            local_layers(cfg) if self.local_window else [],
        )
        self._plan: Any = new_plan(target, self.threads, sizes)
        self.cache_format = cache_format(cfg, rope, cache_type, target, self.local_window)
        self.ops = [node.op for node in plans[0].nodes]
        vectors = _vectors(plans, tensors)
        packed = _pack_all(_matrices(plans, cfg, refs), tensors, progress)
        lower = partial(_lower_all, native=self._plan, rope=rope, made=[], packed=packed, vectors=vectors)
        self._results = lower(plans)
        self._adapters = NativeAdapters(
            self._plan, adaptable_shapes(cfg), lambda sites: lower(_plans(cfg, refs, rope, sites))
        )
        self._images: Any = None
        if cfg.vision is not None:
            from puna.runtime.native_vision import NativeImages, encoder_weights  # most models see nothing

            weights = encoder_weights(cfg, tensors, packed, rope)
            self._images = NativeImages(cfg, self._plan, weights, image_bytes)

    def n_image_positions(self, image: Image) -> int:
        """See core.Executor.n_image_positions."""
        if self._images is None:
            raise BadValue("this model sees no images; choose one with vision, such as llama-3.2-11b-vision")
        n: int = self._images.n_positions(image)
        return n

    def step(self, batch: Batch) -> NDArray[np.float32]:
        """See core.Executor.step."""
        return self._run(batch, 0, self.vocab_size)

    def embed(self, batch: Batch) -> NDArray[np.float32]:
        """See core.Executor.embed."""
        return self._run(batch, len(self._results) // 2, self.embedding_dim)

    def _run(self, batch: Batch, first: int, n_columns: int) -> NDArray[np.float32]:
        """The result of plan `first`, or of the one after it where tokens see images."""
        if self._plan is None:
            raise EngineClosed("the executor is closed: make a new LLM")
        tokens, chunks, blocks = array("i"), array("i"), array("i")
        tables: Any = None  # of local layers
        for c in batch.chunks:
            chunks.extend((len(c.tokens), c.start, c.n_logits, len(blocks)))
            tokens.extend(c.tokens)
            blocks.extend(c.blocks)
        if self.local_window:
            tables = array("i")
            for c in batch.chunks:
                tables.extend((len(blocks), c.local_start))
                blocks.extend(c.local_blocks)
            tables = np.frombuffer(tables, np.int32)
        arrays = [*(np.frombuffer(x, np.int32) for x in (tokens, chunks, blocks)), tables]
        images, given, seen = (None, [], []) if self._images is None else self._images.of(batch)
        adapters = self._adapters.of(batch)
        results = self._results if adapters is None else self._adapters.results
        number = first + bool(seen)  # among the lists of ops that are like it
        n_before = 0 if adapters is None else len(self._results)
        more = (*arrays, n_before + number, given, seen, adapters)
        rows: NDArray[np.float32] = self._plan.step(results[number], n_columns, *more)
        del images  # `given` and `seen` point into them
        return rows

    def prepare_adapter(self, adapter: Adapter) -> Prepared:
        """See core.Executor.prepare_adapter."""
        return pack(adapter)

    def load_adapter(self, number: int, prepared: Prepared) -> None:
        self._adapters.load(number, prepared)

    def unload_adapter(self, number: int) -> None:
        self._adapters.unload(number)

    def close(self) -> None:
        self._plan = self._images = None
        del self._adapters


def _plans(
    cfg: ModelConfig, refs: Mapping[str, WeightRef], rope: RopeTable, sites: Mapping[str, int] | None = None
) -> list[Plan]:
    """Of logits, and with cross-attention of logits where tokens see images; then both of hidden states.

    `sites` are those of matrices that may have adapters.
    """
    sees = (False, True) if cfg.cross_attention else (False,)
    plans = [fuse(record(cfg, refs, rope, with_images), sites) for with_images in sees]
    return [*plans, *map(without_output, plans)]


def _check(cfg: ModelConfig, target: str, cache_type: str) -> None:
    for what, found, known in (
        ("the CPU target of this machine", target, ("", *_native.available_targets())),
        ("the cache type", cache_type, CACHE_TYPES),
    ):
        if found not in known:
            names = ", ".join(name for name in known if name)
            raise BadValue(f"{what} must be one of {names}, got {found!r}{closest(found, known)}")
    if cfg.head_dim % 32 or cfg.head_dim > 256:
        raise Unsupported(
            f"head_dim must be a multiple of 32 up to 256, as kernels need, found {cfg.head_dim}"
        )
    for name, width, multiple in _widths(cfg):
        if width % multiple:
            raise Unsupported(f"{name} must be a multiple of {multiple}, as kernels need, found {width}")


def _widths(cfg: ModelConfig) -> list[tuple[str, int, int]]:
    """(name, width, the number that kernels need it to be a multiple of)."""
    widths = [("dim", cfg.dim, 16), ("ffn_dim", cfg.ffn_dim, 2)]
    if cfg.vision is not None:
        widths.append(("the image encoder's dim", cfg.vision.dim, 16))
    if cfg.lora_rank:
        widths.append(("lora_rank", cfg.lora_rank, 2))
    if cfg.experts is not None:
        widths.append(("expert_ffn_dim", cfg.experts.expert_ffn_dim, 2))
        widths.append(("shared_ffn_dim", cfg.experts.shared_ffn_dim, 2))
    return widths


_OF_VECTORS = ("rms_norm", "weighted_head_norm", "add_gated")  # ops whose weights are no matrices


def _matrices(plans: Sequence[Plan], cfg: ModelConfig, refs: Mapping[str, WeightRef]) -> dict[str, WeightRef]:
    """Weights that are multiplied or looked up, in the order of a step, then the encoder's."""
    nodes = [node for plan in plans for node in plan.nodes if node.op not in _OF_VECTORS]
    found = {w.name: w for node in nodes for w in node.weights}
    if cfg.vision is not None:
        from puna.runtime.native_vision import matrix_names

        found |= {name: refs[name] for name in matrix_names(cfg, refs)}
    return found


def _vectors(plans: Sequence[Plan], tensors: Mapping[str, RawTensor]) -> dict[str, NDArray[np.float32]]:
    """The weights of norms, and gates."""
    vectors = {}
    nodes = [node for plan in plans for node in plan.nodes if node.op in _OF_VECTORS]
    for w in {w.name: w for node in nodes for w in node.weights}.values():
        vectors[w.name] = dequantize(tensors[w.name].data(), tensors[w.name].kind, w.shape)
        tensors[w.name].release()
    return vectors


def _pack_all(
    refs: Mapping[str, WeightRef],
    tensors: Mapping[str, RawTensor],
    progress: Callable[[int], None] | None,
) -> dict[str, Any]:
    sizes = {name: n_matrices(w) * _native.packed_bytes(w.kind, *w.shape[-2:]) for name, w in refs.items()}
    arena = _native.Arena(sum(sizes.values()) + 64 * sum(n_matrices(w) for w in refs.values()))
    packed: dict[str, Any] = {}
    # Large ones first: while one is packed, its pages of the file count as well.
    for name, w in sorted(refs.items(), key=lambda ref: -max(sizes[ref[0]], _SMALL)):
        data = recode(tensors[name].data().reshape(-1), tensors[name].kind)
        each = data.reshape(n_matrices(w), -1)
        rows, cols = w.shape[-2:]
        matrices = [_native.pack_matrix(arena, w.kind, rows, cols, part) for part in each]
        packed[name] = matrices if len(w.shape) == 3 else matrices[0]
        del data, each
        tensors[name].release()
        if progress:
            progress(sizes[name])
    return packed


def n_matrices(w: WeightRef) -> int:
    """Experts of one kind lie in one tensor [experts, rows, cols]."""
    return w.shape[0] if len(w.shape) == 3 else 1


def _lower_all(
    plans: Sequence[Plan],
    native: _native.Plan,
    rope: RopeTable,
    made: list[tuple[int, str]],
    packed: Mapping[str, Any],
    vectors: Mapping[str, NDArray[np.float32]],
) -> list[int]:
    """Every plan as a list of ops over the same weights, cache and buffers; returns the results' buffers."""
    results = []
    for plan in plans:
        if made:
            native.begin_list()
        native.set_rotation([float(f) for f in rope.frequencies], float(rope.attention_factor))
        results.append(_lower(plan, native, made, packed, vectors))
    return results


def _lower(
    plan: Plan,
    native: _native.Plan,
    made: list[tuple[int, str]],
    packed: Mapping[str, Any],
    vectors: Mapping[str, NDArray[np.float32]],
) -> int:
    """Hand every node to the C++ plan, which has `made` buffers by now; returns the buffer of the result."""
    buffers, home = assign_buffers(plan)
    numbers = _buffers(buffers, native, made)
    forms = _wanted_forms(plan, native, packed)

    def number(value: Value) -> int:
        return numbers[home[value]]

    for node in plan.nodes:
        ins = [number(v) for v in node.ins]
        outs = [number(v) for v in node.outs]
        weights = [packed[w.name] for w in node.weights if w.name in packed]
        form = forms.get(node.outs[0], 0) if node.outs else 0
        _LOWER[node.op](native, node, ins, outs, weights, form, vectors)
        if node.op not in ("rms_norm", "attend", "cross_attend"):
            for value in node.outs:
                if value in forms:
                    native.convert(number(value), forms[value])
    result: int = numbers[home[plan.result]]
    return result


def _buffers(wanted: list[tuple[int, str]], native: _native.Plan, made: list[tuple[int, str]]) -> list[int]:
    """A number for each of the wanted buffers, of those that another list has where they fit."""
    numbers: list[int] = []
    for shape in wanted:
        fitting = [i for i, other in enumerate(made) if other == shape and i not in numbers]
        if not fitting:
            fitting = [native.buffer(*shape)]
            made.append(shape)
        numbers.append(fitting[0])
    return numbers


def _wanted_forms(plan: Plan, native: _native.Plan, packed: Mapping[str, Any]) -> dict[Value, int]:
    """For every value that a matrix multiplies: the forms in which its weights read it."""
    forms: dict[Value, int] = {}
    for node in plan.nodes:
        if node.op in ("linear", "gated"):
            found = native.forms_of([packed[w.name] for w in node.weights])
            forms[node.ins[0]] = forms.get(node.ins[0], 0) | found
            if "sites" in node.attrs:  # adapters may be bfloat16
                forms[node.ins[0]] |= _FORMS["bf16"]
    return forms


def _norm(native: Any, node: Node, ins: list[int], outs: list[int], _: Any, form: int, vectors: Any) -> None:
    (w,) = node.weights
    native.rms_norm(ins[0], vectors[w.name], node.attrs["eps"], outs[0], form)


def _head_norm(native: Any, node: Node, ins: list[int], outs: list[int], *rest: Any) -> None:
    (w,), vectors = node.weights, rest[-1]
    native.head_norm(ins[0], vectors[w.name], node.attrs["eps"], outs[0])


def _add_gated(native: Any, node: Node, ins: list[int], outs: list[int], *rest: Any) -> None:
    (w,), vectors = node.weights, rest[-1]
    native.add_scaled(*ins, float(np.tanh(vectors[w.name][0])), outs[0])


def _cross(native: Any, node: Node, ins: list[int], outs: list[int], _: Any, form: int, __: Any) -> None:
    layer, n_heads, scale = (node.attrs[name] for name in ("layer", "n_heads", "scale"))
    native.cross_attend(ins[0], layer, n_heads, scale, outs[0], form)


def _linear(native: Any, node: Node, ins: list[int], outs: list[int], weights: list[Any], *_: Any) -> None:
    native.linear(ins[0], weights, outs, ins[1] if len(ins) == 2 else -1, node.attrs.get("sites", []))


def _store(native: Any, node: Node, ins: list[int], *_: Any) -> None:
    has, temperature = node.attrs, node.attrs.get("temper")
    scales = (0.0, 0.0) if temperature is None else (temperature.floor_scale, temperature.attn_scale)
    native.store(*ins, has["layer"], "rope" in has, has.get("head_norm", 0.0), *scales)


def _attend(native: Any, node: Node, ins: list[int], outs: list[int], _: Any, form: int, __: Any) -> None:
    n_heads, scale, reach = (node.attrs[name] for name in ("n_heads", "scale", "chunk"))
    native.attend(ins[0], node.attrs["layer"], n_heads, scale, reach or 0, outs[0], form)


def _experts(native: Any, node: Node, ins: list[int], outs: list[int], weights: list[Any], *_: Any) -> None:
    native.experts(*ins, *weights, node.attrs["n_active"], outs[0])


_LOWER: dict[str, Callable[..., None]] = {
    "embed": lambda native, node, ins, outs, weights, *_: native.embed(*(*weights, None)[:2], outs[0]),
    "rms_norm": _norm,
    "linear": _linear,
    "gated": lambda native, node, ins, outs, weights, *_: native.gated(ins[0], *weights, outs[0]),
    "store": _store,
    "attend": _attend,
    "experts": _experts,
    "add": lambda native, node, ins, outs, *_: native.add(*ins, outs[0]),
    "swiglu": lambda native, node, ins, outs, *_: native.swiglu(*ins, outs[0]),
    "weighted_head_norm": _head_norm,
    "add_gated": _add_gated,
    "cross_attend": _cross,
    "mask_rows": lambda native, node, ins, outs, *_: native.mask_rows(ins[0], outs[0]),
    "hadamard": lambda native, node, ins, outs, *_: native.hadamard(ins[0], outs[0]),
    "select": lambda native, node, ins, outs, *_: native.select(ins[0], outs[0]),
}
