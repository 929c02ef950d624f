"""Which executor is chosen, and that both give the same answers through the whole engine."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from puna import LLM
from puna.core import BadValue
from puna.llm import backend
from puna.llm.backend import NATIVE, Backend, choose
from puna.llm.config import LLMConfig

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [({}, NATIVE), ({"device": "cpu"}, NATIVE), ({"backend": "native"}, NATIVE)],
)
def test_a_cpu_needs_no_torch(
    asked: dict[str, str], chosen: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_ACCELERATORS", ())
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    assert choose(LLMConfig(**asked)) == chosen


def test_contradictions_and_missing_parts_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadValue, match=r"the native backend runs on the CPU, and device is 'cuda'"):
        choose(LLMConfig(backend="native", device="cuda"))
    with pytest.raises(
        BadValue, match=r"backend must be one of auto, native, torch, got 'troch'; did you mean 'torch'"
    ):
        LLMConfig(backend="troch")
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    for asked in ({"backend": "torch"}, {"device": "cuda"}):
        with pytest.raises(BadValue, match=r"needs torch, which is not installed; install puna\[torch\]"):
            choose(LLMConfig(**asked))


@needs_torch
def test_devices_of_torch() -> None:
    assert choose(LLMConfig(backend="torch", device="cpu")) == Backend("torch", "cpu")
    with pytest.raises(
        BadValue, match=r"device must be cpu, auto or an accelerator of this machine, got 'warp'"
    ):
        choose(LLMConfig(device="warp"))


@needs_torch
def test_both_backends_answer_alike(tiny: Path) -> None:
    options = {"temperature": 0, "max_tokens": 16, "logprobs": 1}
    prompts = ["the cat", "a", "one two three four"]
    answers = {}
    for name in ("native", "torch"):
        with LLM(tiny, backend=name, device="cpu", cache_type="f32", threads=1) as llm:
            answers[name] = [answer.token_ids for answer in llm.generate(prompts, **options)]
    # int8 activations against float32 ones: the first tokens of a random model agree, not all of them
    assert [ids[:1] for ids in answers["native"]] == [ids[:1] for ids in answers["torch"]]


@needs_torch
def test_torch_takes_its_own_share_of_memory(tiny: Path) -> None:
    checkpoint = import_module("puna.weights.load").open_checkpoint(tiny)
    with checkpoint:
        n_values = sum(
            t.shape[0] * (t.shape[1] if len(t.shape) > 1 else 1) for t in checkpoint.tensors.values()
        )
        assert backend.weight_bytes(checkpoint, Backend("torch", "cpu")) == 4 * n_values
        assert backend.weight_bytes(checkpoint, NATIVE) == checkpoint.n_bytes


@needs_torch
def test_weights_and_ranks_ask_for_torch(tiny: Path) -> None:
    assert choose(LLMConfig(device="cpu", weights="int4")) == Backend("torch", "cpu", "int4", 1)
    for name, value in (("weights", "fp8"), ("tensor_parallel", 2)):
        with pytest.raises(BadValue, match=rf"and {name} is .*; use backend torch, or leave it out"):
            choose(LLMConfig(backend="native", **{name: value}))
    with pytest.raises(BadValue, match=r"weights must be one of bf16, f16, f32, fp8, int4, got 'int5'; did"):
        LLMConfig(weights="int5")
    with pytest.raises(BadValue, match="tensor_parallel must be a whole number from 1 to 64, got 0"):
        LLMConfig(tensor_parallel=0)
    with pytest.raises(BadValue, match="tensor_parallel must divide the 2 heads of this model, got 3; use 2"):
        LLM(tiny, device="cpu", tensor_parallel=3)


@needs_torch
@pytest.mark.parametrize("options", [{"weights": "fp8"}, {"weights": "int4"}, {"tensor_parallel": 2}])
def test_an_llm_of_each_kind_answers(tiny: Path, options: dict[str, object]) -> None:
    with LLM(tiny, device="cpu", threads=1, **options) as llm:
        answer = llm.generate("the cat", temperature=0, max_tokens=4, ignore_end=True)
    assert len(answer.token_ids) == 4


@needs_torch
def test_memory_by_kind_of_weight(tiny: Path) -> None:
    with import_module("puna.weights.load").open_checkpoint(tiny) as checkpoint:
        by_kind = {
            kind: backend.weight_bytes(checkpoint, Backend("torch", "cpu", kind))
            for kind in ("f32", "bf16", "fp8", "int4")
        }
        assert by_kind["f32"] > by_kind["bf16"] > max(by_kind["fp8"], by_kind["int4"])
        shared = backend.weight_bytes(checkpoint, Backend("torch", "cuda", "bf16", 2))
        assert shared == -(-by_kind["bf16"] // 2)
