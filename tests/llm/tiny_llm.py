"""A whole model file of 70 kB: random weights, a byte-level vocabulary, and SmolLM2's chat format."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna import LLM
from puna.model.config import ModelConfig
from puna.weights.blocks.quant import quantize
from puna.weights.blocks.tensor import RawTensor
from puna.weights.files.values import Value, ValueType
from puna.weights.load import write_checkpoint
from puna.weights.synthetic import synthetic_checkpoint

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool['function']['name'] + ' ' }}{% endfor %}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_NORMAL, _CONTROL = 1, 3


def write_tiny_llm(
    path: Path,
    *,
    template: str | None = TEMPLATE,
    context: int = 512,
    pre: str = "gpt-2",
    control: Sequence[str] = (),
    seed: int = 3,
    quant: str = "q8_0",
    weights: Callable[[str, tuple[int, ...]], NDArray[np.float32]] | None = None,
    **changes: Any,
) -> Path:
    """Write the file; a random model says random bytes, the same ones everywhere. `control` are more tokens,
    `changes` those of ModelConfig; `weights` gives the tensors in place of random ones, by name and shape.
    """
    letters = _alphabet()
    merges = ["t h", "th e", "Ġ the"]
    normal = [*letters, *(merge.replace(" ", "") for merge in merges)]
    tokens = [*CONTROL, *normal, *control]
    types = [_CONTROL] * len(CONTROL) + [_NORMAL] * len(normal) + [_CONTROL] * len(control)
    entries = {
        "model": Value.of(ValueType.STRING, "gpt2"),
        "pre": Value.of(ValueType.STRING, pre),
        "tokens": Value.array(ValueType.STRING, tokens),
        "token_type": Value.array(ValueType.INT32, types),
        "merges": Value.array(ValueType.STRING, merges),
        "bos_token_id": Value.of(ValueType.UINT32, 1),
        "eos_token_id": Value.of(ValueType.UINT32, 2),
        "add_bos_token": Value.of(ValueType.BOOL, False),
    }
    metadata = {f"tokenizer.ggml.{name}": value for name, value in entries.items()}
    if template is not None:
        metadata["tokenizer.chat_template"] = Value.of(ValueType.STRING, template)
    config = ModelConfig(
        dim=64, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=32, ffn_dim=96, vocab_size=len(tokens),
        norm_eps=1e-5, rope_theta=1e4, context_length=context, tied=True,
    )  # fmt: skip
    checkpoint = synthetic_checkpoint(replace(config, **changes), quant, seed=seed)
    if weights is not None:
        checkpoint = replace(
            checkpoint, tensors={n: _made(t, weights) for n, t in checkpoint.tensors.items()}
        )
    write_checkpoint(checkpoint, path, metadata)
    return path


def _made(tensor: RawTensor, weights: Callable[[str, tuple[int, ...]], NDArray[np.float32]]) -> RawTensor:
    data = quantize(weights(tensor.name, tensor.shape), tensor.kind)
    return replace(tensor, data=lambda: data)


def _alphabet() -> list[str]:
    """GPT-2's spelling of the 256 bytes."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


def until_idle(llm: LLM) -> None:
    """Wait until no request is in the engine."""
    end = time.monotonic() + 10
    while llm._engine._inboxes:
        assert time.monotonic() < end
        time.sleep(0.001)
