"""Checkpoints of a run: model, optimizers and the number of the next step, whole or not there.

Data needs no state, as its order is a function of the step, and neither do learning rates. A checkpoint is
written beside its place and renamed once every rank has written its part; so a run that is killed at any
moment finds the one before. Any layout of ranks reads what any other has written (torch.distributed.
checkpoint).
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from puna.core import BadFile, BadValue
from puna.train.optim.build import Optimizers

_NAME = re.compile(r"step-(\d{9})")
_UNFINISHED = ".partial"
# one flat table of tensors by name: what belongs to a parameter is found whoever held it before
_OPTIONS = StateDictOptions(flatten_optimizer_state_dict=True)


class Checkpoints:
    """Those of one run, in a folder that all ranks see."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        """Raises BadValue unless at least one is kept, OSError where the folder cannot be made."""
        if keep < 1:
            raise BadValue(f"keep must be 1 or more, got {keep}")
        self.folder = folder
        self._keep = keep
        folder.mkdir(parents=True, exist_ok=True)

    def steps(self) -> list[int]:
        """The steps that whole checkpoints were written before, rising."""
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def save(self, model: nn.Module, optimizers: Optimizers, next_step: int) -> Path:
        """Returns once the checkpoint is whole, and older ones than are kept are gone."""
        path = self._path(next_step)
        partial = path.with_suffix(_UNFINISHED)
        if _is_first():
            shutil.rmtree(partial, ignore_errors=True)
        _wait()
        with _alone():
            save(_state(model, optimizers, next_step), checkpoint_id=partial)
        if _is_first():
            shutil.rmtree(path, ignore_errors=True)  # of a run that has gone on from before it
            _sync(partial)
            partial.rename(path)
            _sync_folder(self.folder)
            for step in self.steps()[: -self._keep]:
                shutil.rmtree(self._path(step))
        _wait()
        return path

    def load(self, model: nn.Module, optimizers: Optimizers, step: int | None = None) -> int:
        """Take the latest checkpoint, or that of a step -> the step that is next.

        Raises BadFile where there is none, or one of another model.
        """
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            known = ", ".join(map(str, steps)) or "none"
            asked = "a checkpoint" if step is None else f"the checkpoint of step {step}"
            raise BadFile(f"{self.folder} has not {asked}; found {known}")
        state = _state(model, optimizers, 0)
        path = self._path(steps[-1] if step is None else step)
        try:
            with _alone():
                load(state, checkpoint_id=path)
        except (CheckpointException, RuntimeError, ValueError, OSError) as error:
            raise BadFile(
                f"{path} cannot be read as a checkpoint of this model: {_first_line(error)}"
            ) from None
        set_state_dict(
            model,
            optimizers.parts,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=_OPTIONS,
        )
        return int(state["next_step"])

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"


def _state(model: nn.Module, optimizers: Optimizers, next_step: int) -> dict[str, Any]:
    of_model, of_optimizer = get_state_dict(model, optimizers.parts, options=_OPTIONS)
    return {"model": of_model, "optimizer": of_optimizer, "next_step": next_step}


@contextmanager
def _alone() -> Iterator[None]:
    """One process needs no group, and no warning that it has none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()


def _sync(folder: Path) -> None:
    """Everything in it is on the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
