"""Adapters that PEFT wrote, on every executor: several in one step give what PEFT gives for each alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from weights.peft_adapters import write_adapter, write_model
from weights.random_adapter import random_adapter

from puna import _native
from puna.core import Batch, Chunk
from puna.model.config import ModelConfig
from puna.model.rope import rope_table
from puna.runtime.native import NativeExecutor
from puna.runtime.reference import ReferenceExecutor
from puna.runtime.torch import TorchExecutor
from puna.weights.adapter import Adapter, read_adapter
from puna.weights.blocks.quant import dequantize, quantize
from puna.weights.blocks.tensor import RawTensor
from puna.weights.describe.config import gguf_metadata
from puna.weights.files.values import Metadata
from puna.weights.load import Checkpoint, open_checkpoint, write_checkpoint
from puna.weights.synthetic import synthetic_checkpoint

IDS = [*range(5, 45), 7, 9, 7]
KINDS: list[dict[str, Any]] = [
    {},
    {"r": 20, "target_modules": ["q_proj", "down_proj"], "use_rslora": True, "layers_to_transform": [1]},
    {"dtype": torch.bfloat16, "r": 4, "lora_alpha": 2, "alpha_pattern": {"layers.1.self_attn.k_proj": 3}},
    {"dtype": torch.float16, "rank_pattern": {"o_proj": 2}, "target_modules": ["o_proj", "gate_proj"]},
]
NUMBERS = (0, 11, 12, 13, 14)  # of none, and of each


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapted")


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[int, NDArray[np.float32]]:
    """Logits of PEFT's own models, of the base for 0."""
    models = [write_model(folder / "base")]
    models += [
        write_adapter(folder / f"{n}", folder / "base", n, **k)
        for n, k in zip(NUMBERS[1:], KINDS, strict=True)
    ]
    with torch.no_grad():
        return {n: m(torch.tensor([IDS])).logits[0].numpy() for n, m in zip(NUMBERS, models, strict=True)}


def native(cfg: ModelConfig, checkpoint: Checkpoint) -> Any:
    rope = rope_table(cfg, 256)
    return NativeExecutor(cfg, checkpoint.tensors, rope, cache_tokens=1024, cache_type="f32", threads=2)


def reference(cfg: ModelConfig, checkpoint: Checkpoint) -> Any:
    arrays = {name: dequantize(t.data(), t.kind, t.shape) for name, t in checkpoint.tensors.items()}
    return ReferenceExecutor(cfg, arrays, n_blocks=32, block_size=32)


def on_torch(cfg: ModelConfig, checkpoint: Checkpoint) -> Any:
    options: dict[str, Any] = {"cache_tokens": 1024, "cache_type": "f32", "device": "cpu", "max_tokens": 512}
    return TorchExecutor(cfg, checkpoint.tensors, rope_table(cfg, 256), static_decode=True, **options)


@pytest.fixture(scope="module", params=[native, reference, on_torch], ids=lambda f: f.__name__)
def executor(
    request: pytest.FixtureRequest, folder: Path, expected: dict[int, NDArray[np.float32]]
) -> Iterator[Any]:
    make: Callable[[ModelConfig, Checkpoint], Any] = request.param
    with open_checkpoint(folder / "base") as checkpoint:
        made = make(checkpoint.config, checkpoint)
        for number in NUMBERS[1:]:
            adapter = read_adapter(folder / f"{number}", checkpoint.config)
            made.load_adapter(number, made.prepare_adapter(adapter))
        yield made
        made.close()


def step(executor: Any, *chunks: Chunk) -> list[NDArray[np.float32]]:
    logits = np.array(executor.step(Batch(list(chunks))))
    ends = np.cumsum([chunk.n_logits for chunk in chunks])
    return np.split(logits, ends[:-1])


def chunk(number: int, place: int, start: int = 0, end: int = len(IDS)) -> Chunk:
    return Chunk(IDS[start:end], start, [2 * place, 2 * place + 1], end - start, adapter=number)


def tolerance(executor: Any, number: int) -> float:
    """The native kernels multiply bfloat16 matrices with activations in bfloat16."""
    return 1e-2 if number == 13 and isinstance(executor, NativeExecutor) else 5e-6


def test_a_batch_of_all_is_what_peft_computes(
    executor: Any, expected: dict[int, NDArray[np.float32]]
) -> None:
    order = (11, 0, 12, 13, 14, 11)
    found = step(executor, *(chunk(number, place) for place, number in enumerate(order)))
    for number, logits in zip(order, found, strict=True):
        assert np.abs(logits - expected[number]).max() < tolerance(executor, number), number
        if number:
            assert np.abs(logits - expected[0]).max() > 0.01  # it does something


def test_decoding_beside_others_is_what_peft_computes(
    executor: Any, expected: dict[int, NDArray[np.float32]]
) -> None:
    order = (12, 13, 0, 11, 14, 0)
    n = len(IDS) - 3
    step(executor, *(chunk(number, place, 0, n) for place, number in enumerate(order)))
    for i in range(n, len(IDS)):
        found = step(executor, *(chunk(number, place, i, i + 1) for place, number in enumerate(order)))
        for number, logits in zip(order, found, strict=True):
            assert np.abs(logits[0] - expected[number][i]).max() < tolerance(executor, number), number


def test_of_a_bfloat16_adapter_only_activations_are_rounded(
    folder: Path, expected: dict[int, NDArray[np.float32]]
) -> None:
    with open_checkpoint(folder / "base") as checkpoint:
        made = native(checkpoint.config, checkpoint)
        adapter = read_adapter(folder / "13", checkpoint.config)
        parts = {
            name: replace(part, down=as_f32(part.down), up=as_f32(part.up))
            for name, part in adapter.parts.items()
        }
        made.load_adapter(1, made.prepare_adapter(Adapter(parts)))
        (found,) = step(made, chunk(1, 0))
        assert np.abs(found - expected[13]).max() < 5e-6
        made.close()


def as_f32(tensor: RawTensor) -> RawTensor:
    data = quantize(dequantize(tensor.data(), tensor.kind, tensor.shape), "F32")
    return replace(tensor, kind="F32", data=lambda: data)


def test_an_unloaded_adapter_leaves_the_others_and_its_slot_to_a_new_one(
    executor: Any, folder: Path, expected: dict[int, NDArray[np.float32]]
) -> None:
    executor.unload_adapter(11)
    with open_checkpoint(folder / "base") as checkpoint:
        again = read_adapter(folder / "12", checkpoint.config)  # leaves most matrices alone
    executor.load_adapter(21, executor.prepare_adapter(again))
    for number, logits in zip(
        (21, 0, 14), step(executor, chunk(21, 0), chunk(0, 1), chunk(14, 2)), strict=True
    ):
        assert np.abs(logits - expected[12 if number == 21 else number]).max() < 5e-6
    executor.unload_adapter(21)
    with open_checkpoint(folder / "base") as checkpoint:
        first = read_adapter(folder / "11", checkpoint.config)
    executor.load_adapter(11, executor.prepare_adapter(first))


@pytest.mark.parametrize(
    ("quant", "target"),
    [("q4_0", ""), ("q4_k_m", ""), ("bf16", ""), *(("q8_0", name) for name in _native.available_targets())],
)
def test_native_rows_have_the_same_bits_in_any_company(quant: str, target: str) -> None:
    """Alone, in a crowd, in chunks of any size, on any number of threads; and rows without an adapter as if
    none were loaded."""
    cfg = ModelConfig(
        dim=256, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=64, ffn_dim=512, vocab_size=96, norm_eps=1e-5,
        rope_theta=1e4, context_length=256, tied=False,
    )  # fmt: skip
    checkpoint = synthetic_checkpoint(cfg, quant, seed=1)
    rope = rope_table(cfg, 256)
    ids = [i % 96 for i in range(0, 240, 3)]

    def run(threads: int, numbers: tuple[int, ...], cuts: tuple[int, ...]) -> list[NDArray[np.float32]]:
        made: Any = NativeExecutor(
            cfg, checkpoint.tensors, rope, cache_tokens=4096, threads=threads, target=target
        )
        for number, kind in ((1, "F32"), (2, "BF16"), (3, "F16")):
            if number in numbers:
                made.load_adapter(
                    number, made.prepare_adapter(random_adapter(cfg, number, kind, rank=8 * number))
                )
        rows: list[list[NDArray[np.float32]]] = [[] for _ in numbers]
        for start, end in zip((0, *cuts), (*cuts, len(ids)), strict=True):
            blocks = [list(range(8 * i, 8 * i + 8)) for i in range(len(numbers))]
            chunks = [
                Chunk(ids[start:end], start, table, end - start, adapter=number)
                for table, number in zip(blocks, numbers, strict=True)
            ]
            for i, logits in enumerate(step(made, *chunks)):
                rows[i].append(logits)
        made.close()
        return [np.concatenate(part) for part in rows]

    crowd = run(2, (1, 0, 2, 3, 1), (40, 41, 42, 77))
    for number, place in ((0, 1), (1, 0), (2, 2), (3, 3)):
        (alone,) = run(1, (number,), (70,))
        assert np.array_equal(alone, crowd[place]), number
    assert np.array_equal(crowd[0], crowd[4])
    assert not np.array_equal(crowd[0], crowd[1])


def test_an_adapter_of_hugging_faces_order_fits_a_gguf_of_the_same_model(
    folder: Path, expected: dict[int, NDArray[np.float32]], tmp_path: Path
) -> None:
    with open_checkpoint(folder / "base") as checkpoint:
        described = replace(checkpoint, metadata=Metadata(gguf_metadata(checkpoint.config)))
        write_checkpoint(described, tmp_path / "base.gguf")
    with open_checkpoint(tmp_path / "base.gguf") as checkpoint:
        made = native(checkpoint.config, checkpoint)
        made.load_adapter(1, made.prepare_adapter(read_adapter(folder / "11", checkpoint.config)))
        (found,) = step(made, chunk(1, 0))
        assert np.abs(found - expected[11]).max() < 5e-6
        made.close()
