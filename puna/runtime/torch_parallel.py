"""Tensor parallel: one model shared by several processes, of which this one is rank 0 and runs the engine.

The others are started here as `python -m puna.runtime.torch_worker` and obey one message for each step: the
batch. Within a step ranks meet in collective operations, over gloo on a CPU and over NCCL on CUDA devices.
Whatever goes wrong anywhere ends the whole executor with one sentence; nobody waits for a rank that is gone.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryFile
from typing import IO, Any, Literal
from weakref import finalize

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._C._distributed_c10d import GatherOptions, PrefixStore, TCPStore

from puna.core import BadValue, Batch, EngineClosed, Image, WorkFailed
from puna.model.config import ModelConfig
from puna.model.rope import RopeTable
from puna.runtime.torch import TorchExecutor, choose_device
from puna.runtime.torch_shard import check_ranks
from puna.weights.adapter import Adapter
from puna.weights.blocks.tensor import RawTensor

_HOST = "127.0.0.1"
_COLLECTIVE = timedelta(minutes=5)  # longer than any step: ranks of one step start it together
_FAREWELL = 5.0  # seconds to wait for the reason of a failure, and for a worker to end


@dataclass(frozen=True, slots=True)
class Part:
    """What a worker needs to make its part of the model. Sent to it once, before the batches."""

    model: Path  # it opens the checkpoint itself
    config: ModelConfig
    rope: RopeTable
    options: Mapping[str, Any]  # of TorchExecutor
    rank: int
    size: int
    port: int  # where ranks find each other


class Group:
    """torch_shard.Ranks over a process group of our own, so that several models may share a process."""

    def __init__(self, rank: int, size: int, store: TCPStore, device: torch.device) -> None:
        self.rank, self.size = rank, size
        self._store, self._device = store, device
        self._group: Any = None

    def join(self) -> None:
        """Wait for all ranks; nothing else may be called before."""
        self._group = _process_group(PrefixStore("puna", self._store), self.rank, self.size, self._device)

    def add_up(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        self._group.allreduce([x]).wait()
        return x

    def gather(self, x: Tensor) -> list[Tensor]:
        x = x.contiguous()
        options = GatherOptions()
        options.rootRank = 0
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else []
        self._group.gather([parts] if parts else [], [x], options).wait()
        return parts or [x]

    def abort(self) -> None:
        """Wake this rank if it waits for one that will not come; over gloo it wakes by itself."""
        if self._group is not None and self._device.type == "cuda":
            self._group.abort()


def _process_group(store: PrefixStore, rank: int, size: int, device: torch.device) -> Any:
    if device.type == "cuda":
        from torch.distributed import ProcessGroupNCCL

        torch.cuda.set_device(device)
        options = ProcessGroupNCCL.Options()
        options._timeout = _COLLECTIVE
        return ProcessGroupNCCL(store, rank, size, options)
    from torch.distributed import ProcessGroupGloo

    gloo: Any = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    gloo._devices = [ProcessGroupGloo.create_device(hostname=_HOST)]
    gloo._timeout = _COLLECTIVE
    return ProcessGroupGloo(store, rank, size, gloo)


def rank_device(device: str, rank: int, size: int) -> torch.device:
    """The CPU, or the CUDA device with the number of the rank. Raises BadValue where there are too few."""
    chosen = choose_device(device)
    if chosen.type == "cpu":
        return chosen
    if chosen.type != "cuda":
        raise BadValue(
            f"tensor_parallel runs on cpu and cuda devices, and device is {device!r}; leave it out there"
        )
    if torch.cuda.device_count() < size:
        raise BadValue(
            f"tensor_parallel must be at most the {torch.cuda.device_count()} CUDA devices that there are, "
            f"got {size}"
        )
    return torch.device("cuda", rank)


class _Worker:
    """A process of another rank, and a thread that hears of its end."""

    def __init__(self, part: Part, heard: SimpleQueue[str], on_failure: Callable[[], None]) -> None:
        """`heard` gets "" when the worker is ready, and a sentence if it ends before it is told to."""
        self.rank, self._heard, self._on_failure = part.rank, heard, on_failure
        self._log: IO[bytes] = TemporaryFile()  # noqa: SIM115 - closed with the process
        self._is_leaving = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "puna.runtime.torch_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # an interrupt at the terminal is the engine's business
        )
        self._listener = threading.Thread(target=self._listen, name=f"puna-rank-{part.rank}", daemon=True)
        self._listener.start()
        self.send(pickle.dumps(part))

    def send(self, message: bytes) -> None:
        """Raises BrokenPipeError if it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(message)
        self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        reason = ""
        for line in self._process.stdout:
            if line.startswith(b"{"):  # libraries may greet
                answer = json.loads(line)
                reason = answer.get("error", "")
                if not reason:
                    self._heard.put("")
        status = self._process.wait()
        if not self._is_leaving:
            self._heard.put(f"rank {self.rank} {reason or self._last_words(status)}")
            self._on_failure()

    def _last_words(self, status: int) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"ended with status {status}" + (f" ({lines[-1]})" if lines else "")

    def end(self) -> None:
        """Closing its input tells it to leave; one that is stuck in a step is killed."""
        self._is_leaving = True
        try:
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process.wait(_FAREWELL)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            pass
        self.kill()

    def kill(self) -> None:
        self._is_leaving = True
        self._process.kill()
        self._process.wait()
        self._listener.join(_FAREWELL)
        for pipe in (self._process.stdout, self._process.stdin, self._log):
            with suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]


class ParallelExecutor:
    """core.Executor over `size` ranks. The options are those of TorchExecutor; `threads` are those of all
    ranks together where they share a CPU.

    Raises BadValue for a model or machine that so many ranks cannot share, and WorkFailed where one of them
    fails.
    """

    block_size = TorchExecutor.block_size

    def __init__(
        self,
        cfg: ModelConfig,
        tensors: Mapping[str, RawTensor],
        rope: RopeTable,
        *,
        model: Path,
        size: int,
        device: str = "auto",
        threads: int | None = None,
        progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> None:
        check_ranks(cfg, size)
        own = rank_device(device, 0, size)
        on_cpu = own.type == "cpu"
        options["threads"] = max(1, (threads or torch.get_num_threads()) // size) if on_cpu else threads
        store = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
        self._heard: SimpleQueue[str] = SimpleQueue()
        self._workers: list[_Worker] = []
        self._finalizer = finalize(self, _kill_all, self._workers)
        self._error = ""
        group = Group(0, size, store, own)
        with ExitStack() as stack:
            stack.callback(self._finalizer)
            for rank in range(1, size):
                chosen = options | {"device": str(rank_device(device, rank, size))}
                part = Part(model, cfg, rope, chosen, rank, size, store.port)
                self._workers.append(_Worker(part, self._heard, group.abort))
            self._executor = TorchExecutor(
                cfg, tensors, rope, device=str(own), progress=progress, ranks=group, **options
            )
            self._meet(group)
            stack.pop_all()
        self.vocab_size, self.embedding_dim = cfg.vocab_size, cfg.dim
        self.context_length = cfg.context_length
        self.n_token_ids, self.n_blocks = self._executor.n_token_ids, self._executor.n_blocks
        self.n_local_blocks, self.local_window = self._executor.n_local_blocks, self._executor.local_window
        self.max_images = self._executor.max_images
        self.threads = self._executor.threads * (size if on_cpu else 1)

    def step(self, batch: Batch) -> NDArray[np.float32]:
        """See TorchExecutor.step. Raises WorkFailed once a rank is gone, and EngineClosed from then on."""
        return self._run("step", batch)

    def embed(self, batch: Batch) -> NDArray[np.float32]:
        """See TorchExecutor.embed, and step()."""
        return self._run("embed", batch)

    def _run(self, method: Literal["step", "embed"], batch: Batch) -> NDArray[np.float32]:
        if self._error or not self._finalizer.alive:
            raise EngineClosed(f"{self._error or 'the executor is closed'}; load the model again to go on")
        try:
            message = pickle.dumps((method, batch))
            for worker in self._workers:
                worker.send(message)
            rows: NDArray[np.float32] = getattr(self._executor, method)(batch)
            return rows
        except (RuntimeError, OSError) as error:
            reason = self._reason()
            self._finalizer()
            self._executor.close()
            self._error = reason or f"a step of rank 0 failed ({error})"
            if not reason:
                raise
            raise WorkFailed(
                f"{reason}, so that the model it shares has stopped; load the model again to go on"
            ) from None

    def n_image_positions(self, image: Image) -> int:
        """See core.Executor.n_image_positions."""
        return self._executor.n_image_positions(image)

    def _meet(self, group: Group) -> None:
        """Wait until every rank has loaded its part and has come."""
        try:
            for _ in self._workers:
                self._error = self._heard.get()
                if not self._error:
                    continue
                raise WorkFailed(f"{self._error}; the model could not be loaded")
            group.join()
        except RuntimeError as error:
            raise WorkFailed(f"{self._reason() or error}; the model could not be loaded") from None

    def _reason(self) -> str:
        """What a worker that has just failed says; "" if none has."""
        with suppress(Empty):
            self._error = self._error or self._heard.get(timeout=_FAREWELL)
        return self._error

    def prepare_adapter(self, adapter: Adapter) -> Any:
        """Raises BadValue: see TorchExecutor."""
        return self._executor.prepare_adapter(adapter)

    def close(self) -> None:
        if self._finalizer.detach() is not None:
            for worker in self._workers:
                worker.end()
            self._executor.close()


def _kill_all(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.kill()
