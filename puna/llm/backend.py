"""Which executor runs a model: the compiled one on the CPU, or torch on a device of its own.

torch is an extra and takes seconds to import, so nobody does who does not need it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from puna import env
from puna.core import BadValue
from puna.engine.config import EngineConfig
from puna.llm.config import LLMConfig
from puna.llm.memory import available_bytes
from puna.model.config import ModelConfig
from puna.model.rope import RopeTable
from puna.weights.load import Checkpoint

_ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dri/renderD128")  # CUDA, ROCm, others


@dataclass(frozen=True, slots=True)
class Backend:
    """A choice made: `name` is native or torch, `device` a name that torch understands."""

    name: str
    device: str
    weights: str = ""  # torch: what was asked for
    ranks: int = 1  # torch: processes that share the model

    @property
    def is_torch(self) -> bool:
        return self.name == "torch"


NATIVE = Backend("native", "cpu")


def choose(asked: LLMConfig) -> Backend:
    """The backend and device of `asked`, whose "auto" means: an accelerator that torch sees, else the CPU.

    Raises BadValue where they contradict each other, or where torch or the device is missing.
    """
    if asked.backend == "native":
        _refuse_for_native(asked)
        if asked.device not in ("auto", "cpu"):
            raise BadValue(
                f"the native backend runs on the CPU, and device is {asked.device!r}; use backend torch, "
                "or leave the device out"
            )
        return NATIVE
    if asked.backend == "auto" and (asked.weights or asked.tensor_parallel > 1):
        asked = replace(asked, backend="torch")
    needs_no_torch = asked.device == "cpu" or (asked.device == "auto" and not _has_accelerator())
    if asked.backend == "auto" and needs_no_torch:
        return NATIVE
    if find_spec("torch") is None:
        raise BadValue(
            f"backend {asked.backend!r} on device {asked.device!r} needs torch, which is not installed; "
            "install puna[torch], or use backend native"
        )
    from puna.runtime.torch import choose_device

    device = choose_device(asked.device)
    if asked.backend == "auto" and device.type == "cpu":
        return NATIVE
    return Backend("torch", str(device), asked.weights, asked.tensor_parallel)


def _refuse_for_native(asked: LLMConfig) -> None:
    for name, is_asked in (("weights", asked.weights), ("tensor_parallel", asked.tensor_parallel > 1)):
        if is_asked:
            raise BadValue(
                f"the native backend computes on the file's own weights in one process, and {name} is "
                f"{getattr(asked, name)!r}; use backend torch, or leave it out"
            )


def _has_accelerator() -> bool:
    """Whether it is worth importing torch to ask."""
    return any(Path(path).exists() for path in _ACCELERATORS) and find_spec("torch") is not None


def weight_bytes(checkpoint: Checkpoint, backend: Backend) -> int:
    """Bytes of all weights in the memory of one device: as stored, or as torch keeps them."""
    if not backend.is_torch:
        return checkpoint.packed_bytes
    from puna.runtime.torch import default_dtype
    from puna.runtime.torch_weights import weight_bytes as bytes_of

    kind = backend.weights or default_dtype(backend.device)
    total = sum(bytes_of(tensor, kind, not backend.weights) for tensor in checkpoint.tensors.values())
    return total if backend.device == "cpu" else -(-total // backend.ranks)


def available(backend: Backend) -> int | None:
    """Bytes that can be taken of the memory that the model will lie in; None where nobody tells."""
    if not backend.is_torch or backend.device == "cpu":
        return available_bytes()
    from puna.runtime.torch import free_bytes

    return free_bytes(backend.device)


def cpu_target(prefer: str) -> str:
    """The target of the native kernels: what the environment says, or the best for what is preferred.

    Products in tiles make prompts and a dozen answers at once or more faster, and one answer alone slower
    (docs/speed.md).
    """
    from puna.runtime.cpu import TILES, cpu_info

    tiles = TILES if prefer == "throughput" and TILES in cpu_info()["available"] else ""
    return env.cpu_target() or tiles


def most_guesses(backend: Backend, prefer: str) -> int:
    """Of a step: as many tokens as it takes along for little. In tiles that is a few for each of 32 answers:
    beside their attention, which reads the cache once for all tokens of an answer, products cost little.
    """
    from puna.runtime.cpu import TILES

    is_tiled = not backend.is_torch and cpu_target(prefer) == TILES
    return 128 if is_tiled else EngineConfig().max_guesses


def make_executor(
    backend: Backend,
    config: ModelConfig,
    checkpoint: Checkpoint,
    rope: RopeTable,
    asked: LLMConfig,
    cache_tokens: int,
    engine_config: EngineConfig,
    progress: Callable[[int], None],
    target: str | None = None,
) -> Any:
    """A core.Executor with the model in memory; `progress` is told the bytes of each tensor.

    `target` of the native kernels is cpu_target's if nobody says.
    """
    threads = asked.threads or env.threads()
    if backend.is_torch:
        return _torch_executor(
            backend,
            config,
            checkpoint,
            rope,
            cache_tokens=cache_tokens,
            cache_type=asked.cache_type,
            device=backend.device,
            weights=backend.weights,
            threads=threads,
            max_tokens=engine_config.max_step_tokens,
            progress=progress,
        )
    from puna.runtime.native import NativeExecutor

    return NativeExecutor(
        config,
        checkpoint.tensors,
        rope,
        cache_tokens=cache_tokens,
        cache_type=asked.cache_type,
        threads=threads,
        max_tokens=engine_config.max_step_tokens,
        max_logits=engine_config.max_rows(config.vocab_size),
        target=cpu_target(asked.prefer) if target is None else target,
        progress=progress,
    )


def _torch_executor(
    backend: Backend, config: ModelConfig, checkpoint: Checkpoint, rope: RopeTable, **options: Any
) -> Any:
    if backend.ranks == 1:
        from puna.runtime.torch import TorchExecutor

        return TorchExecutor(config, checkpoint.tensors, rope, **options)
    from puna.runtime.torch_parallel import ParallelExecutor

    model = checkpoint.folder or checkpoint.paths[0]
    return ParallelExecutor(config, checkpoint.tensors, rope, model=model, size=backend.ranks, **options)
