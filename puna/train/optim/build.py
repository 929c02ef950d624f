"""Optimizers of torch over the groups of groups.py, with the learning rate of a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from puna.core import BadValue
from puna.train.optim.groups import Rule, claimed
from puna.train.optim.schedule import Schedule


class Optimizers:
    """All optimizers of a model, as one."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], rules: Sequence[Rule], schedule: Schedule
    ) -> None:
        """Raises BadValue for rules that do not fit the parameters."""
        groups = [(rule, group) for rule, group in claimed(rules, parameters) if group]
        self._schedule = schedule
        self.parts: list[Optimizer] = []
        adamw = [_adamw(rule, group) for rule, group in groups if rule.optimizer == "adamw"]
        if adamw:
            self.parts.append(AdamW(adamw, fused=True))
        muon = [_muon(rule, group) for rule, group in groups if rule.optimizer == "muon"]
        if muon:
            self.parts.append(torch.optim.Muon(muon, adjust_lr_fn="match_rms_adamw"))

    def set_rate(self, step: int, n_steps: int) -> float:
        """The learning rate of that step, which all groups get times their own -> the schedule's."""
        rate = self._schedule.rate(step, n_steps)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate * group["times"]
        return rate

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)


def _adamw(rule: Rule, group: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    return {
        "params": list(group.values()), "times": rule.rate, "lr": 0.0, "betas": rule.betas, "eps": rule.eps,
        "weight_decay": rule.weight_decay,
    }  # fmt: skip


def _muon(rule: Rule, group: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """Jordan et al. 2024, with the scale of updates that lets it share AdamW's rates (arXiv 2502.16982)."""
    for name, parameter in group.items():
        if parameter.ndim != 2:
            shape = tuple(parameter.shape)
            raise BadValue(f"muon turns matrices, {name} has the shape {shape}; give it to adamw by a rule")
    return {
        "params": list(group.values()), "times": rule.rate, "lr": 0.0, "weight_decay": rule.weight_decay,
    }  # fmt: skip


def clip(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """Scale all gradients so that their norm together is at most `most` -> the norm that they had.

    Parameters may lie on several meshes of devices: norms are taken on each and then put together.
    """
    with_grad = [p for p in parameters if p.grad is not None]
    by_mesh: dict[Any, list[Tensor]] = {}
    for parameter in with_grad:
        gradient = parameter.grad
        assert gradient is not None
        by_mesh.setdefault(getattr(gradient, "device_mesh", None), []).append(gradient)
    norms = [_whole(torch.nn.utils.get_total_norm(each)) for each in by_mesh.values()]
    total = torch.stack(norms).square().sum().sqrt() if norms else torch.zeros(())
    for each in by_mesh.values():
        scale = (most / (total + 1e-6)).clamp(max=1.0)
        for gradient in each:
            gradient.mul_(scale)
    return total


def _whole(norm: Tensor) -> Tensor:
    """A norm of tensors that are split between ranks is so, too."""
    full: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return full
