"""Both image encoders and the cross-attention block against Meta's own code, with random weights.

llama-models computes them over fairscale's layers of many GPUs; here plain layers of one process stand for
those, and the code between them is Meta's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("llama_models")

from runtime.tiny_vision import PATCH, SIDE, model, picture  # noqa: E402

from puna.core import Image  # noqa: E402
from puna.model.block import CrossLayerWeights, cross_layer  # noqa: E402
from puna.model.incoming import incoming  # noqa: E402
from puna.model.names import CROSS_TABLE  # noqa: E402
from puna.model.vision import assemble_vision, cross_keys, encode, tiles  # noqa: E402
from puna.ops.images import Seen, StepImages  # noqa: E402
from puna.ops.reference import NumpyOps  # noqa: E402
from puna.ops.reference_vision import NumpyVisionOps  # noqa: E402


class Linear(torch.nn.Linear):
    def __init__(self, n_in: int, n_out: int, bias: bool = True, **_: Any) -> None:
        super().__init__(n_in, n_out, bias)


class Embedding(torch.nn.Embedding):
    def __init__(self, n: int, dim: int, **_: Any) -> None:
        super().__init__(n, dim)


def _module(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(contents)
    return module


@pytest.fixture(scope="module")
def meta() -> Iterator[tuple[Any, Any, Any]]:
    """llama3/multimodal/model.py, llama4/vision/embedding.py and llama4/args.py, on one CPU."""
    parallel = "fairscale.nn.model_parallel"
    initialize = _module(f"{parallel}.initialize", get_model_parallel_world_size=lambda: 1)
    layers = dict.fromkeys(("ColumnParallelLinear", "RowParallelLinear"), Linear)
    stand_ins = [
        _module("fairscale"), _module("fairscale.nn"), _module(parallel), initialize,
        _module(f"{parallel}.layers", VocabParallelEmbedding=Embedding, **layers),
        _module(f"{parallel}.mappings", reduce_from_model_parallel_region=lambda x: x),
        _module("torchvision"), _module("torchvision.transforms"),
        _module("torchvision.transforms.functional"),
        _module("tiktoken"), _module("tiktoken.load", load_tiktoken_bpe=None),
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for module in stand_ins:
            patch.setitem(sys.modules, module.__name__, module)
            parent, _, name = module.__name__.rpartition(".")
            if parent:
                setattr(sys.modules[parent], name, module)
        patch.setattr(torch.Tensor, "cuda", lambda self: self)
        from llama_models.llama3.multimodal import model as llama32
        from llama_models.llama4 import args
        from llama_models.llama4.vision import embedding as llama4

        for name in ("reduce_from_tensor_model_parallel_region", "gather_from_tensor_model_parallel_region"):
            patch.setattr(llama32, name, lambda x: x)
        yield llama32, llama4, args
    for name in [name for name in sys.modules if name.startswith("llama_models.")]:
        del sys.modules[name]  # imported over stand-ins


def randomize(module: Any) -> Any:
    torch.manual_seed(0)
    for key, parameter in module.named_parameters():
        matrix = parameter.ndim > 1 and "pos" not in key
        torch.nn.init.normal_(parameter, float("gate" in key), parameter.shape[-1] ** -0.5 if matrix else 0.5)
    return module.float().eval()


def our_weights(name: str, prefix: str, module: Any) -> Any:
    """The weights of Meta's encoder in place of those of the tiny model."""
    m, tensors = model(name), dict(model(name).tensors)
    for key, value in module.state_dict().items():
        for part in incoming("meta", prefix + key, m.config):
            tensors[part.ours] = np.ascontiguousarray(part.of(value.numpy()))
    return assemble_vision(m.config.vision, m.config.dim, tensors)


def ours(name: str, w: Any, image: Image) -> np.ndarray:
    vision = model(name).config.vision
    result: np.ndarray = encode(NumpyVisionOps(tiles(vision, w, image, np.asarray)), vision, w)
    return result


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (3, 1), (2, 2)])
def test_the_encoder_of_llama32(grid: tuple[int, int], meta: Any) -> None:
    vision = model("mllama").config.vision
    encoder = randomize(
        meta[0].VisionEncoder(
            vision.max_tiles, None, SIDE, PATCH, vision.dim, vision.n_layers, vision.n_heads,
            n_global_layers=vision.n_global_layers, global_model=True,
            return_intermediate=list(vision.intermediate_layers),
        )
    )  # fmt: skip
    image = picture(*grid)
    w = our_weights("mllama", "vision_model.vision_encoder.", encoder)
    pixels = torch.zeros(1, 1, vision.max_tiles, 3, SIDE, SIDE)
    pixels[0, 0, : len(image.pixels)] = torch.from_numpy(image.pixels)
    with torch.inference_mode():
        features = encoder(pixels, torch.tensor([[grid]]))[0, 0, : len(image.pixels)].flatten(0, 1).numpy()
    expected = features @ w.vision_projection.T + w.vision_projection_bias
    np.testing.assert_allclose(ours("mllama", w, image), expected, rtol=0, atol=2e-5)


def test_the_encoder_of_llama4(meta: Any) -> None:
    vision, args = model("llama4").config.vision, meta[2]
    module = meta[1].VisionEmbeddings(
        args.VisionArgs(
            image_size=args.Size(height=SIDE, width=SIDE), patch_size=args.Size(height=PATCH, width=PATCH),
            dim=vision.dim, n_layers=vision.n_layers, n_heads=vision.n_heads, mlp_ratio=4.0,
            output_dim=vision.adapter_dim, pixel_shuffle_ratio=vision.pixel_shuffle,
        )
    )  # fmt: skip
    module = randomize(module)
    w = our_weights("llama4", "vision_embeddings.", module)
    image = picture(2, 2, thumbnail=True)
    with torch.inference_mode():
        encoded = module.vision_encoder(torch.from_numpy(image.pixels)[:, None])
        features = module.vision_adapter(encoded).flatten(0, 1).numpy()
    np.testing.assert_allclose(ours("llama4", w, image), features @ w.vision_projection.T, rtol=0, atol=2e-5)


def test_the_cross_attention_block(meta: Any) -> None:
    """Three tokens see nothing, and keep what they are; the others see one of two images."""
    from llama_models.llama3.args import ModelArgs

    args = ModelArgs(dim=64, n_heads=4, n_kv_heads=2, multiple_of=32, vocab_size=8)
    block = randomize(meta[0].CrossAttentionTransformerBlock(args, layer_id=0))
    state = {key: value.numpy() for key, value in block.state_dict().items()}
    w = CrossLayerWeights(**{name.ours: state[name.meta] for name in CROSS_TABLE})
    cfg = replace(model("mllama").config, dim=64, n_heads=4, n_kv_heads=2, head_dim=16)
    rng = np.random.default_rng(0)
    x_TD, y_ID = rng.standard_normal((9, 64), np.float32), rng.standard_normal((30, 64), np.float32)
    rows, parts = slice(3, 9), slice(10, 30)
    mask = torch.full((1, 1, 9, 30), torch.finfo(torch.float32).min)
    mask[..., rows, parts] = 0
    sees = meta[0]._get_full_row_masked_out_mask(mask, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        cache = block.compute_xattn_kv_cache(torch.from_numpy(y_ID)[None])
        expected = block(torch.from_numpy(x_TD)[None], mask * sees, sees, cache)[0].numpy()
    ops: Any = NumpyOps.__new__(NumpyOps)
    keys = cross_keys(ops, cfg, [w], y_ID[parts])
    ops.step = type("Step", (), {"images": StepImages(seen=(Seen(rows, [keys]),))})
    got = cross_layer(ops, cfg, w, 0, x_TD)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(got[:3], x_TD[:3])
    assert np.abs(got[3:] - x_TD[3:]).max() > 0.1
