"""The torch executor: block.py over the torch ops, on any device that torch knows. [extra: torch]"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from puna.core import BadValue, Batch, EngineClosed, Image, closest
from puna.model.block import decoder, hidden
from puna.model.config import ModelConfig
from puna.model.names import assemble
from puna.model.rope import RopeTable
from puna.model.sizes import local_layers, local_positions, local_window
from puna.ops.torch_ops import Cache, Step, TorchOps
from puna.runtime.adapters import AdaptableWeights, Prepared
from puna.runtime.images import IMAGE_BYTES, Encoded, ImageStore, max_images
from puna.runtime.torch_graphs import DecodeSteps
from puna.runtime.torch_shard import Ranks, Shard, ShardedOps
from puna.runtime.torch_weights import DTYPES, WeightType, check_device, load_weight
from puna.weights.adapter import Adapter
from puna.weights.blocks.quant import dequantize
from puna.weights.blocks.tensor import RawTensor

BLOCK_TOKENS = 32


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name ("cpu", "cuda", "cuda:1", …); "auto" is the accelerator if there is one.

    Raises BadValue for a device that this torch does not have.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadValue(
            f"device must be cpu, auto or an accelerator of this machine, got {name!r} (torch says: {first})"
        ) from None
    return device


def default_dtype(device: str | torch.device) -> str:
    """What weights and activations are computed in if nobody says."""
    return "f32" if torch.device(device).type == "cpu" else "bf16"


def free_bytes(device: str) -> int | None:
    """Memory of an accelerator that nobody has taken; None where torch cannot tell."""
    try:
        free, _ = torch.get_device_module(device).mem_get_info(device)
    except (AttributeError, RuntimeError):
        return None
    return int(free)


class TorchExecutor:
    """core.Executor on a torch device.

    `cache_tokens` positions of keys and values are kept as `cache_type`, reserved at once; layers with
    chunked attention keep fewer where the most tokens of a step, `max_tokens`, are known. Activations and
    matrices have the type `dtype`; by default bfloat16 on an accelerator and float32 on a CPU. `weights`
    (torch_weights.py) may take matrices in fewer bits. `threads` (for CPU work; default: torch's own choice)
    holds for the whole process. With `static_decode` decode steps run over fixed buffers, captured as graphs
    where there is CUDA (default: there). With `ranks` this is one of several that share the model.
    Encoded images are kept up to `image_bytes`, and longer while a step needs them.
    """

    block_size = BLOCK_TOKENS

    def __init__(
        self,
        cfg: ModelConfig,
        tensors: Mapping[str, RawTensor],
        rope: RopeTable,
        *,
        cache_tokens: int,
        cache_type: str = "",
        device: str = "auto",
        dtype: str = "",
        weights: str = "",
        threads: int | None = None,
        max_tokens: int = 0,
        progress: Callable[[int], None] | None = None,
        image_bytes: int = IMAGE_BYTES,
        static_decode: bool | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.device = choose_device(device)
        _dtype("dtype", dtype or default_dtype(self.device))
        wanted = WeightType.of(weights, dtype or default_dtype(self.device), dtype)
        check_device(wanted, self.device)
        self.dtype = wanted.dtype
        if threads is not None:
            torch.set_num_threads(threads)
        self.threads = torch.get_num_threads()
        self.vocab_size, self.embedding_dim = cfg.vocab_size, cfg.dim
        self.n_token_ids = cfg.vocab_size + cfg.n_image_embeddings
        self.context_length = cfg.context_length
        self.n_blocks = -(-cache_tokens // BLOCK_TOKENS)
        shard = Shard(ranks, cfg) if ranks is not None else None
        self._ranks = ranks
        self._cfg = cfg = shard.config if shard is not None else cfg
        loaded: dict[str, Any] = {}
        for name, tensor in tensors.items():
            part = tensor if shard is None else shard.cut(tensor)
            weight = load_weight(part, wanted, self.device)
            loaded[name] = weight if shard is None else shard.kind(name, weight)
            tensor.release()
            if progress is not None:
                progress(tensor.n_bytes)
        self._adapters = AdaptableWeights(cfg, loaded, self._matrix) if ranks is None else None
        loaded = loaded if self._adapters is None else self._adapters.tensors
        self._weights: Any = assemble(cfg, loaded, _on_device(rope, self.device))
        cached = _dtype("cache_type", cache_type) if cache_type else self.dtype
        window = local_window(cfg, BLOCK_TOKENS) if max_tokens else 0
        n_local = -(-local_positions(window, cache_tokens, max_tokens) // BLOCK_TOKENS)
        self.n_local_blocks, self.local_window = (n_local, window) if n_local < self.n_blocks else (0, 0)
        self._cache = self._make_cache(cfg, cached)
        self._images = ImageStore(cfg, self._encode, image_bytes)
        self.max_images = max_images(cfg)
        if static_decode and ranks is not None:
            raise BadValue("decode steps over fixed buffers need one process, and several share the model")
        if static_decode is None:
            static_decode = self.device.type == "cuda" and ranks is None
        self._decode = DecodeSteps(self._forward, self._cache) if static_decode else None

    def _make_cache(self, cfg: ModelConfig, dtype: torch.dtype) -> Cache:
        """Pages for all blocks, and one more of each pool for rows that pad a step."""
        return Cache(
            cfg.n_layers,
            self.n_blocks + 1,
            BLOCK_TOKENS,
            cfg.n_kv_heads,
            cfg.head_dim,
            dtype,
            self.device,
            n_local_blocks=self.n_local_blocks + 1,
            local_layers=local_layers(cfg) if self.local_window else (),
        )

    def n_image_positions(self, image: Image) -> int:
        """See core.Executor.n_image_positions."""
        return self._images.n_positions(image)

    @torch.inference_mode()
    def step(self, batch: Batch) -> NDArray[np.float32]:
        """See core.Executor.step; rows depend on the rest of the batch in their last bits."""
        images = self._images_of(batch)
        size = self._decode.size_of(batch) if self._decode is not None else None
        if self._decode is not None and size is not None:
            logits_RV = self._decode.run(batch, size)
        else:
            logits_RV = self._forward(Step.of(batch, self._cache, images))
        logits: NDArray[np.float32] = logits_RV.float().cpu().numpy()
        return logits

    @torch.inference_mode()
    def embed(self, batch: Batch) -> NDArray[np.float32]:
        """See core.Executor.embed; rows depend on the rest of the batch in their last bits."""
        images = self._images_of(batch)
        rows: NDArray[np.float32] = (
            self._forward(Step.of(batch, self._cache, images), hidden).float().cpu().numpy()
        )
        return rows

    def _images_of(self, batch: Batch) -> Any:
        if self._weights is None:
            raise EngineClosed("the executor is closed: make a new LLM")
        return self._images.of(batch)

    def _forward(self, step: Step, compute: Callable[..., torch.Tensor] = decoder) -> torch.Tensor:
        """Logits [R, V], or what else is computed."""
        ops = TorchOps(step, self.dtype)
        if self._ranks is not None:
            ops = ShardedOps(step, self.dtype)
            ops.ranks = self._ranks
        return compute(ops, self._cfg, self._weights, bool(step.images.seen))

    def _matrix(self, tensor: RawTensor) -> torch.Tensor:
        """One of an adapter's, in the type of activations."""
        return torch.from_numpy(dequantize(tensor.data(), tensor.kind, tensor.shape)).to(
            self.device, self.dtype
        )

    def prepare_adapter(self, adapter: Adapter) -> Prepared:
        """What load_adapter needs of a weights.adapter.Adapter. Safe in any thread."""
        if self._adapters is None:
            raise BadValue("adapters need the whole model in one process, and tensor_parallel shares it out")
        return self._adapters.prepare(adapter)

    def load_adapter(self, number: int, prepared: Prepared) -> None:
        assert self._adapters is not None
        self._adapters.load(number, prepared)

    def unload_adapter(self, number: int) -> None:
        assert self._adapters is not None
        self._adapters.unload(number)

    def _encode(self, image: Image) -> Encoded:
        from puna.ops.torch_vision import TorchVisionOps

        def numbers(part: torch.Tensor) -> NDArray[np.float32]:
            array: NDArray[np.float32] = part.float().cpu().numpy()
            return array

        ops = partial(TorchVisionOps, dtype=self.dtype, device=self.device)
        return self._images.encode(image, self._weights, ops, numbers)

    def close(self) -> None:
        self._weights = self._decode = self._adapters = None
        del self._cache, self._images


def _on_device(rope: RopeTable, device: torch.device) -> Any:
    """The table with its frequencies where angles are computed, so that no step has to send them."""
    if device.type not in ("cpu", "cuda"):  # others may lack float64
        return rope
    return _DeviceTable(torch.from_numpy(np.array(rope.frequencies)).to(device), rope.attention_factor)


@dataclass(frozen=True, slots=True, eq=False)
class _DeviceTable:
    frequencies: torch.Tensor  # float64 [C/2]
    attention_factor: float


def _dtype(what: str, name: str) -> torch.dtype:
    if name not in DTYPES:
        known = ", ".join(DTYPES)
        hint = closest(name, list(DTYPES))
        raise BadValue(f"{what} of the torch executor must be one of {known}, got {name!r}{hint}")
    return DTYPES[name]
