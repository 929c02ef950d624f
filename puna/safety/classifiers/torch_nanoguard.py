"""NanoGuard (package metatronnanoguard, MIT): a bidirectional encoder with rotary positions. [extra: torch]

    B windows  T tokens, always `window + 1`  H heads  K head_dim  D dim

The padding takes part in attention and not in the mean, as in the maker's code: the model was trained so.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.core import BadFile
from puna.safety.classifiers.nanoguard_tokens import BEGIN, PAD, read_tokens

_ROPE_BASE = 10_000
_SIZES = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd", "num_classes")
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, LookupError, EOFError)  # of torch.load


class NanoGuard:
    """A puna.safety.classifiers.injection.Encoder. Not for several threads at once."""

    def __init__(self, folder: Path) -> None:
        """Raises BadFile."""
        self._tokenizer, special = read_tokens(folder / "tokenizer.pkl")
        self._begin, self._pad = special[BEGIN], special[PAD]
        sizes, self._weights = _read(folder / "model.pt")
        self._n_layers, self._n_heads = sizes["n_layer"], sizes["n_head"]
        self._length = sizes["sequence_len"]
        self.window = self._length - 1
        n_tokens = self._tokenizer.get_vocab_size() + len(special)
        if n_tokens != sizes["vocab_size"]:
            raise BadFile(f"{folder}: model.pt must have the tokenizer's {n_tokens:,} tokens, "
                          f"has {sizes['vocab_size']:,}")  # fmt: skip
        self._cos, self._sin = _rotations(self._length, sizes["n_embd"] // sizes["n_head"])

    def encode(self, text: str) -> Sequence[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def scores(self, windows: Sequence[Sequence[int]]) -> Sequence[float]:
        rows = [[self._begin, *window] for window in windows]
        ids_BT = torch.tensor([row + [self._pad] * (self._length - len(row)) for row in rows])
        lengths_B = torch.tensor([len(row) for row in rows])
        with torch.inference_mode():
            logits = self._logits(ids_BT, torch.arange(self._length) < lengths_B[:, None])
        found: list[float] = logits.softmax(-1)[:, 1].tolist()
        return found

    def _logits(self, ids_BT: Tensor, real_BT: Tensor) -> Tensor:
        w = self._weights
        x0_BTD = _norm(F.embedding(ids_BT, w["transformer.wte.weight"]))
        x_BTD = x0_BTD
        for i in range(self._n_layers):
            x_BTD = w["resid_lambdas"][i] * x_BTD + w["x0_lambdas"][i] * x0_BTD
            x_BTD = x_BTD + self._attend(_norm(x_BTD), f"transformer.h.{i}.attn.")
            up = F.linear(_norm(x_BTD), w[f"transformer.h.{i}.mlp.c_fc.weight"])
            x_BTD = x_BTD + F.linear(F.relu(up).square(), w[f"transformer.h.{i}.mlp.c_proj.weight"])
        mask = real_BT[..., None].float()
        mean_BD = (_norm(x_BTD) * mask).sum(1) / mask.sum(1)
        normed = F.layer_norm(mean_BD, mean_BD.shape[-1:], w["cls_norm.weight"], w["cls_norm.bias"])
        return F.linear(normed, w["cls_head.weight"], w["cls_head.bias"])

    def _attend(self, x_BTD: Tensor, prefix: str) -> Tensor:
        w = self._weights
        q, k, v = (
            F.linear(x_BTD, w[f"{prefix}c_{name}.weight"]).view(*x_BTD.shape[:2], self._n_heads, -1)
            for name in "qkv"
        )
        q, k = (_norm(self._rotate(heads)) for heads in (q, k))
        y_BHTK = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return F.linear(y_BHTK.transpose(1, 2).flatten(2), w[f"{prefix}c_proj.weight"])

    def _rotate(self, x_BTHK: Tensor) -> Tensor:
        a, b = x_BTHK.chunk(2, -1)
        return torch.cat([a * self._cos + b * self._sin, b * self._cos - a * self._sin], -1)


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


def _rotations(length: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, 1, K / 2], rounded to bf16 as in training."""
    frequency = 1.0 / _ROPE_BASE ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(length).float(), frequency)[:, None]
    return angles.cos().bfloat16().float(), angles.sin().bfloat16().float()


def _read(path: Path) -> tuple[Mapping[str, int], Mapping[str, Tensor]]:
    """Sizes and weights (float32). Raises BadFile; nothing that a pickle could run is run."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd pickles, which are refused anyway
            data = torch.load(path, map_location="cpu", weights_only=True)
        sizes = {name: int(data["config"][name]) for name in _SIZES}
        weights = {name: tensor.float() for name, tensor in data["model_state_dict"].items()}
        _check(sizes, weights)
    except (*_UNREADABLE, AttributeError, TypeError, ValueError) as error:
        said = str(error).splitlines() or [""]
        raise BadFile(f"{path} must be NanoGuard's checkpoint, found: {said[0]:.200}") from None
    return sizes, weights


def _check(sizes: Mapping[str, int], weights: Mapping[str, Any]) -> None:
    """Raises ValueError for tensors of other shapes than the sizes say."""
    dim, layers = sizes["n_embd"], sizes["n_layer"]
    if sizes["n_kv_head"] != sizes["n_head"] or dim % sizes["n_head"] or sizes["num_classes"] != 2:
        raise ValueError(f"sizes that are not NanoGuard's: {sizes}")
    expected = {
        "transformer.wte.weight": (sizes["vocab_size"], dim), "resid_lambdas": (layers,),
        "x0_lambdas": (layers,), "cls_norm.weight": (dim,), "cls_norm.bias": (dim,),
        "cls_head.weight": (2, dim), "cls_head.bias": (2,),
    }  # fmt: skip
    for i in range(layers):
        expected |= {
            f"transformer.h.{i}.attn.c_{name}.weight": (dim, dim) for name in ("q", "k", "v", "proj")
        }
        expected[f"transformer.h.{i}.mlp.c_fc.weight"] = (4 * dim, dim)
        expected[f"transformer.h.{i}.mlp.c_proj.weight"] = (dim, 4 * dim)
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found != expected:
        wrong = sorted(
            name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
        )
        raise ValueError(f"{wrong[0]} of shape {found.get(wrong[0])}, expected {expected.get(wrong[0])}")
