"""Which executor runs a model: the compiled one on the CPU, or torch on a device of its own.

torch is an extra and takes seconds to import, so nobody does who does not need it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
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
_FLOAT_BYTES = {"bf16": 2, "f16": 2, "f32": 4}


@dataclass(frozen=True, slots=True)
class Backend:
    """A choice made: `name` is native or torch, `device` a name that torch understands."""

    name: str
    device: str

    @property
    def is_torch(self) -> bool:
        return self.name == "torch"


NATIVE = Backend("native", "cpu")


def choose(asked: LLMConfig) -> Backend:
    """The backend and device of `asked`, whose "auto" means: an accelerator that torch sees, else the CPU.

    Raises BadValue where they contradict each other, or where torch or the device is missing.
    """
    if asked.backend == "native":
        if asked.device not in ("auto", "cpu"):
            raise BadValue(
                f"the native backend runs on the CPU, and device is {asked.device!r}; use backend torch, "
                "or leave the device out"
            )
        return NATIVE
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
    return NATIVE if asked.backend == "auto" and device.type == "cpu" else Backend("torch", str(device))


def _has_accelerator() -> bool:
    """Whether it is worth importing torch to ask."""
    return any(Path(path).exists() for path in _ACCELERATORS) and find_spec("torch") is not None


def weight_bytes(checkpoint: Checkpoint, backend: Backend) -> int:
    """Bytes of all weights in memory: as stored, or in the type that torch computes in."""
    if not backend.is_torch:
        return checkpoint.packed_bytes
    from puna.runtime.torch import default_dtype

    return _FLOAT_BYTES[default_dtype(backend.device)] * sum(
        prod(t.shape) for t in checkpoint.tensors.values()
    )


def available(backend: Backend) -> int | None:
    """Bytes that can be taken of the memory that the model will lie in; None where nobody tells."""
    if not backend.is_torch or backend.device == "cpu":
        return available_bytes()
    from puna.runtime.torch import free_bytes

    return free_bytes(backend.device)


def make_executor(
    backend: Backend,
    config: ModelConfig,
    checkpoint: Checkpoint,
    rope: RopeTable,
    asked: LLMConfig,
    cache_tokens: int,
    engine_config: EngineConfig,
    progress: Callable[[int], None],
) -> Any:
    """A core.Executor with the model in memory; `progress` is told the bytes of each tensor."""
    threads = asked.threads or env.threads()
    if backend.is_torch:
        from puna.runtime.torch import TorchExecutor

        return TorchExecutor(
            config,
            checkpoint.tensors,
            rope,
            cache_tokens=cache_tokens,
            cache_type=asked.cache_type,
            device=backend.device,
            threads=threads,
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
        target=env.cpu_target() or "",
        progress=progress,
    )
