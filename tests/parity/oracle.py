"""A feature's model in transformers: its weights under our names, and the log-probabilities of any tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from parity.features import FEATURES, Feature

from puna.model import names
from puna.model.config import ModelConfig, from_hf
from puna.model.incoming import incoming
from puna.weights.blocks.tensor import RawTensor

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Oracle:
    feature: Feature
    config: ModelConfig
    tensors: dict[str, NDArray[np.float32]]  # by our names
    tokens: list[int]
    _hf: Any
    _known: dict[tuple[int, ...], Floats] = field(default_factory=dict)

    def logprobs(self, tokens: Sequence[int]) -> Floats:
        """Natural log-probabilities [T, V] after each token, one full pass without a cache."""
        key = tuple(tokens)
        if key not in self._known:
            with torch.inference_mode():
                logits = self._hf(torch.tensor([list(tokens)]), use_cache=False).logits[0]
            self._known[key] = log_softmax(logits.numpy())
        return self._known[key]

    def hidden(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The last layer's outputs after the final norm [T, D]."""
        with torch.inference_mode():
            rows = self._hf.model(torch.tensor([list(tokens)]), use_cache=False).last_hidden_state[0]
        found: NDArray[np.float32] = rows.numpy()
        return found

    def stored(self) -> dict[str, RawTensor]:
        """The weights as tensors of an F32 file."""

        def data(values: NDArray[np.float32]) -> NDArray[np.uint8]:
            return values.view(np.uint8).reshape(-1)

        return {n: RawTensor(n, "F32", t.shape, partial(data, t)) for n, t in self.tensors.items()}


@cache
def oracle(name: str) -> Oracle:
    feature = FEATURES[name]
    torch.manual_seed(sum(map(ord, name)))
    if feature.llama4:
        settings = transformers.Llama4TextConfig(**feature.settings)
        model = transformers.Llama4ForCausalLM(settings)
    else:
        settings = transformers.LlamaConfig(**feature.settings)
        model = transformers.LlamaForCausalLM(settings)
    model.set_attn_implementation("sdpa")
    model = model.eval().float()
    with torch.no_grad():
        for key, parameter in model.named_parameters():  # peaked attention: errors of positions show
            gain = 1.5 if key.endswith(("q_proj.weight", "k_proj.weight")) else 1.0
            std = gain * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5
            torch.nn.init.normal_(parameter, std=std)
    model.tie_weights()
    config = from_hf(settings.to_dict())
    tensors: dict[str, NDArray[np.float32]] = {}
    for key, value in model.state_dict().items():
        if config.tied and key == "lm_head.weight":
            continue
        for part in incoming("hf", key, config):
            tensors[part.ours] = np.ascontiguousarray(part.of(value.numpy()))
    names.check_shapes(config, {key: value.shape for key, value in tensors.items()})
    tokens = torch.randint(0, config.vocab_size, (feature.n_tokens,)).tolist()
    return Oracle(feature, config, tensors, tokens, model)


def log_softmax(logits: NDArray[np.float32]) -> Floats:
    x = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    y: Floats = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return y
