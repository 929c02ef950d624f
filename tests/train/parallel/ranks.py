"""Training on several ranks of this machine: processes over gloo, each with its part of the rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from parity.oracle import oracle

from puna.train.checkpoint import Checkpoints
from puna.train.model.module import Llama
from puna.train.model.rows import IGNORED, rows_of
from puna.train.optim.build import Optimizers
from puna.train.optim.groups import DEFAULT
from puna.train.optim.schedule import Schedule
from puna.train.parallel.apply import parallelize
from puna.train.parallel.layout import Layout, batch_group, batch_rank
from puna.train.step import Batch, Stepper

N_STEPS, N_ROWS, N_TOKENS = 20, 8, 48


def rows(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels of a step; each row has another number of labels."""
    random = torch.Generator().manual_seed(step)
    tokens = torch.randint(1, 96, (N_ROWS, N_TOKENS), generator=random)
    labels = tokens.roll(-1, 1)
    for i in range(N_ROWS):
        labels[i, : 5 * i] = IGNORED
    return tokens, labels


@dataclass(frozen=True)
class Run:
    """A model over a layout, up to a step. With `saved` it goes on from the latest checkpoint there, if there
    is one, and leaves one at its end."""

    name: str
    layout: Layout = field(default_factory=Layout)
    n_steps: int = N_STEPS
    saved: Path | None = None


Trajectory = list[tuple[float, float]]  # loss and gradient norm of each step, as rank 0 has them


def alone(run: Run) -> Trajectory:
    """By this process."""
    assert run.layout.n_ranks == 1
    return _train(run, None, 0, 1)


def trajectories(runs: Sequence[Run], folder: Path) -> list[Trajectory]:
    """One run after the other by the same processes, which take long to start."""
    mp.spawn(_rank, (runs, folder), nprocs=max(run.layout.n_ranks for run in runs))
    return [torch.load(folder / f"run-{i}.pt") for i in range(len(runs))]


def _rank(rank: int, runs: Sequence[Run], folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    for i, run in enumerate(runs):
        n_ranks = run.layout.n_ranks
        if rank >= n_ranks:
            continue
        store = f"file://{folder}/store-{i}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=n_ranks)
        try:
            run.layout.check(oracle(run.name).config, n_ranks)
            mesh = run.layout.mesh("cpu")
            found = _train(run, mesh, batch_rank(mesh), run.layout.n_batch)
            if rank == 0:
                torch.save(found, folder / f"run-{i}.pt")
        finally:
            dist.destroy_process_group()


def _train(run: Run, mesh: Any, part: int, n_parts: int) -> Trajectory:
    known = oracle(run.name)
    model = Llama(known.config)
    model.load(known.tensors)
    group, context = None, None
    if mesh is not None:
        parallelize(model, mesh)
        group = batch_group(mesh)
        context = mesh["context"] if mesh["context"].size() > 1 else None
    optimizers = Optimizers(dict(model.tensors()), DEFAULT, Schedule(1e-3, "constant"))
    stepper = Stepper(model, optimizers, n_steps=N_STEPS, group=group)
    first = 0
    if run.saved is not None and (checkpoints := Checkpoints(run.saved)).steps():
        first = checkpoints.load(model, optimizers)
    found = []
    for number in range(first, run.n_steps):
        tokens, labels = rows(number)
        own = slice(part * N_ROWS // n_parts, (part + 1) * N_ROWS // n_parts)
        taken = stepper.step(number, _micro(tokens[own], labels[own], context))
        found.append((taken.loss, taken.grad_norm))
    if run.saved is not None:
        Checkpoints(run.saved).save(model, optimizers, run.n_steps)
    return found


def _micro(tokens: torch.Tensor, labels: torch.Tensor, context: Any) -> Sequence[Batch]:
    """Two rows at a time, each of two documents."""
    found = []
    for ids, own in zip(tokens.split(2), labels.split(2), strict=True):
        rows = rows_of(ids, [[20, 28], [36, 12]])
        if context is not None:
            rows = rows.part(context.get_local_rank(), context.size(), context.get_group())
            assert rows.order_N is not None
            own = own[:, rows.order_N]
        found.append(Batch(rows, own))
    return found
