"""Make meta_quantized.npz: logits of the tiny int4 checkpoints by Meta's own code.

    PYTHONPATH=.:tests python tests/golden/make_meta_quantized.py        needs torchao (0.18), llama-models

    PYTHONPATH=.:tests python tests/golden/make_meta_quantized.py    needs torchao (0.18), llama-models
layers of one process stand for fairscale's. The Hadamard transform before w2 is not in llama-models (it
was in llama-stack, llama_stack/models/llama/hadamard_utils.py, applied where quantization_args.spinquant is
true): here it is a product with Sylvester's matrix, made by the recursion that defines it.

For each scheme, float32 [tokens, vocabulary]: `SCHEME`, as Meta runs it, activations rounded to 8 bits for
each token; `SCHEME exact`, with unrounded activations.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torchao.quantization.linear_quant_modules as torchao_linear
from golden.meta_quantized import SCHEMES, TOKENS, params, write_int4


class Linear(torch.nn.Linear):
    def __init__(self, n_in: int, n_out: int, bias: bool = True, **_: Any) -> None:
        super().__init__(n_in, n_out, bias)


class Embedding(torch.nn.Embedding):
    def __init__(self, n: int, dim: int, **_: Any) -> None:
        super().__init__(n, dim)


class Hadamard(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.ones(1, 1, dtype=torch.float64)
        while len(h) < x.shape[-1]:
            h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
        return (x.double() @ h.T / x.shape[-1] ** 0.5).to(x.dtype)


def stand_in(name: str, **contents: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(contents)
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)


def meta() -> tuple[Any, Any, Any]:
    """llama3/model.py, llama3/args.py and llama3/quantization/loader.py, on one CPU."""
    parallel = "fairscale.nn.model_parallel"
    for name in ("fairscale", "fairscale.nn", parallel, "fbgemm_gpu", "fbgemm_gpu.experimental"):
        stand_in(name)
    stand_in("fbgemm_gpu.experimental.gen_ai")
    stand_in("tiktoken")
    stand_in("tiktoken.load", load_tiktoken_bpe=None)
    stand_in(
        f"{parallel}.initialize",
        get_model_parallel_world_size=lambda: 1,
        get_model_parallel_rank=lambda: 0,
    )
    stand_in(
        f"{parallel}.layers",
        ColumnParallelLinear=Linear,
        RowParallelLinear=Linear,
        VocabParallelEmbedding=Embedding,
    )
    stand_in(f"{parallel}.mappings", reduce_from_model_parallel_region=lambda x: x)
    stand_in(
        "torchao.quantization.GPTQ", Int8DynActInt4WeightLinear=torchao_linear.Int8DynActInt4WeightLinear
    )
    import llama_models.llama3  # noqa: F401  (the parent of what follows)

    stand_in("llama_models.llama3.multimodal")
    stand_in("llama_models.llama3.multimodal.model", CrossAttentionTransformer=torch.nn.Module)
    torch.Tensor.cuda = lambda self: self
    from llama_models.llama3 import args, model
    from llama_models.llama3.quantization import loader

    return args, model, loader


def logits(modules: tuple[Any, Any, Any], scheme: str, folder: Path) -> np.ndarray:
    args, model, loader = modules
    transformer = model.Transformer(args.ModelArgs(**params(scheme), max_seq_len=64, max_batch_size=1))
    loader.convert_to_int4_quantized_model(transformer, str(folder), torch.device("cpu"))
    stored = torch.load(folder / "consolidated.00.pth", weights_only=True)
    transformer.load_state_dict(stored, strict=True)
    if scheme == "spinquant":
        for layer in transformer.layers:
            layer.feed_forward.w2 = torch.nn.Sequential(Hadamard(), layer.feed_forward.w2)
    with torch.inference_mode():
        return transformer.float().forward(torch.tensor([TOKENS]), 0)[0].numpy()


def main() -> None:
    modules = meta()
    arrays: dict[str, np.ndarray] = {}
    rounded = torchao_linear.per_token_dynamic_quant
    for scheme in SCHEMES:
        with tempfile.TemporaryDirectory() as name:
            write_int4(Path(name), scheme)
            torchao_linear.per_token_dynamic_quant = rounded
            arrays[scheme] = logits(modules, scheme, Path(name))
            torchao_linear.per_token_dynamic_quant = lambda x, **_: x
            arrays[f"{scheme} exact"] = logits(modules, scheme, Path(name))
        difference = np.abs(arrays[scheme] - arrays[f"{scheme} exact"]).max()
        print(scheme, "largest", np.abs(arrays[scheme]).max(), "difference by activations", difference)
    path = Path(__file__).parent / "meta_quantized.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
