"""Meta's int4 releases (SpinQuant, QLoRA) against Meta's own loading code, on seeded tiny checkpoints."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from golden.meta_quantized import FFN, GROUP, LAYERS, RANK, SCHEMES, TOKENS, params, state_dict, write_int4  # noqa: E402

from puna.core import BadFile, BadInput, Batch, Chunk, Unsupported  # noqa: E402
from puna.model.rope import rope_table  # noqa: E402
from puna.runtime.native import NativeExecutor  # noqa: E402
from puna.runtime.reference import ReferenceExecutor  # noqa: E402
from puna.runtime.torch import TorchExecutor  # noqa: E402
from puna.weights.blocks.quant import dequantize  # noqa: E402
from puna.weights.convert import convert  # noqa: E402
from puna.weights.load import Checkpoint, open_checkpoint  # noqa: E402
from puna.weights.targets import Texts, plan  # noqa: E402

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "meta_quantized.npz")
ALL = Batch([Chunk(TOKENS, 0, [0], len(TOKENS))])
NO_TEXTS = Texts({}, {}, {})


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(scheme: str, tmp_path: Path) -> Path:
    write_int4(tmp_path / scheme, scheme)
    return tmp_path / scheme


def values(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {n: dequantize(t.data(), t.kind, t.shape) for n, t in checkpoint.tensors.items()}


def reference(checkpoint: Checkpoint) -> np.ndarray:
    return ReferenceExecutor(checkpoint.config, values(checkpoint), n_blocks=1).step(ALL)


def test_logits_are_metas(scheme: str, folder: Path) -> None:
    """Where Meta's code does not round activations."""
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.config.ffn_hadamard == (scheme == "spinquant")
        assert checkpoint.config.lora_rank == (RANK if scheme == "qlora" else 0)
        kinds = {n.rpartition(".")[2]: t.kind for n, t in checkpoint.tensors.items() if len(t.shape) == 2}
        assert kinds["w2"] == kinds["wq"] == "INT4"
        assert kinds["output"] == kinds["tok_embeddings"] == "INT8"
        np.testing.assert_allclose(reference(checkpoint), GOLDEN[f"{scheme} exact"], atol=2e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_compiled_core_is_about_as_near_as_metas_own_rounding(
    scheme: str, folder: Path, threads: int
) -> None:
    """Activations in 8 bits by groups of 32, Meta's for whole tokens but not before the output."""
    exact, rounded = GOLDEN[f"{scheme} exact"], GOLDEN[scheme]
    with open_checkpoint(folder) as checkpoint:
        cfg = checkpoint.config
        executor = NativeExecutor(
            cfg, checkpoint.tensors, rope_table(cfg), cache_tokens=64, cache_type="f32", threads=threads
        )
        got = executor.step(ALL).copy()
        whole = np.concatenate(
            [
                executor.step(Batch([Chunk(TOKENS[:5], 0, [1], 5)])).copy(),
                executor.step(Batch([Chunk(TOKENS[5:], 5, [1], len(TOKENS) - 5)])).copy(),
            ]
        )
        executor.close()
    np.testing.assert_array_equal(got, whole)
    assert np.sqrt(np.square(got - exact).mean()) < 1.5 * np.sqrt(np.square(rounded - exact).mean())


@pytest.mark.parametrize(("weights", "tolerance"), [("", 2e-5), ("f32", 2e-5), ("int4", 2e-5)])
def test_torch(scheme: str, folder: Path, weights: str, tolerance: float) -> None:
    with open_checkpoint(folder) as checkpoint:
        cfg = checkpoint.config
        given: dict[str, Any] = {"cache_tokens": 64, "device": "cpu", "weights": weights, "dtype": "f32"}
        executor = TorchExecutor(cfg, checkpoint.tensors, rope_table(cfg), **given)
        np.testing.assert_allclose(executor.step(ALL), GOLDEN[f"{scheme} exact"], atol=tolerance)
        executor.close()


@pytest.mark.parametrize("form", ["gguf", "hf", "meta"])
def test_conversion_makes_a_plain_model(scheme: str, folder: Path, tmp_path: Path, form: Any) -> None:
    """Merged adapters, and the Hadamard transform in w2: other matrices, the same logits."""
    with open_checkpoint(folder) as checkpoint:
        with pytest.raises(Unsupported, match=r"is INT\d.*add --dtype"):
            plan(checkpoint, form, NO_TEXTS)
        target = plan(checkpoint, form, NO_TEXTS, name="m", dtype="F32")
        assert ("adapters are merged" if scheme == "qlora" else "Hadamard") in target.notes[-1]
        made = tmp_path / ("m.gguf" if form == "gguf" else form)
        convert(target, made)
        with open_checkpoint(made) as converted:
            cfg = converted.config
            assert not cfg.ffn_hadamard
            assert not cfg.lora_rank
            np.testing.assert_allclose(reference(converted), GOLDEN[f"{scheme} exact"], atol=2e-4)
            if scheme == "spinquant":
                np.testing.assert_array_equal(
                    values(converted)["layers.0.w1"], values(checkpoint)["layers.0.w1"]
                )


def changed(folder: Path, scheme: str, **changes: Any) -> str:
    """The message with which a file is refused that has other tensors; None removes one."""
    stored = {**state_dict(scheme), **changes}
    torch.save({k: v for k, v in stored.items() if v is not None}, folder / "consolidated.00.pth")
    with pytest.raises(BadFile) as caught, open_checkpoint(folder) as checkpoint:
        values(checkpoint)
    return str(caught.value)


def test_parts_that_do_not_fit(tmp_path: Path) -> None:
    write_int4(tmp_path, "spinquant")
    w2 = "layers.1.feed_forward.w2"
    assert "needs 'layers.1.feed_forward.w2.scales' of shape (64, 8)" in changed(
        tmp_path, "spinquant", **{f"{w2}.scales": None}
    )
    assert "stands without the int8 matrix" in changed(tmp_path, "spinquant", **{f"{w2}.weight": None})
    message = changed(tmp_path, "spinquant", **{f"{w2}.scales": torch.ones(64, FFN // GROUP // 2)})
    assert "groups of 32 inputs, found F32 of shape (64, 4)" in message
    wide = torch.full((64, FFN), 9, dtype=torch.int8)
    assert "numbers of 4 bits, -8 to 7, found 9 to 9" in changed(
        tmp_path, "spinquant", **{f"{w2}.weight": wide}
    )
    zeros = torch.ones(64, FFN // GROUP)
    assert "'layers.1.feed_forward.w2.zeros' are not zero" in changed(
        tmp_path, "spinquant", **{f"{w2}.zeros": zeros}
    )
    stored = state_dict("spinquant") | {f"{w2}.zeros": torch.zeros(64, FFN // GROUP)}
    torch.save(stored, tmp_path / "consolidated.00.pth")
    with open_checkpoint(tmp_path) as checkpoint:  # zeros that are zero say nothing
        assert len(checkpoint.tensors) == 9 * LAYERS + 3
    stray = {f"{w2}.adaptor.A.weight": torch.zeros(4, FFN)}
    assert "describes no such tensor" in changed(tmp_path, "spinquant", **stray)
    missing = {f"{w2}.adaptor.A.weight": None}
    write_int4(tmp_path, "qlora")
    assert "lacks the tensor 'layers.1.w2_down'" in changed(tmp_path, "qlora", **missing)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_args": {"group_size": 64}}, "groups of 64 inputs"),
        (
            {"quantization_args": {"group_size": 0}},
            "group_size of quantization_args must be a count, found 0",
        ),
        ({"quantization_args": {"scheme": "int8", "group_size": 32}}, "scheme .* is 'int8', and Puna reads"),
        ({"quantization_args": {"group_size": 32, "bits": 3}}, "sets 'bits', which Puna does not know"),
        ({"quantization_args": [32]}, "must be a mapping"),
        ({"quantization_args": None}, "holds I8, and params.json does not say that"),
        ({"quantization_args": None, "lora_args": {"rank": 4, "scale": 2.0}}, "lora_args without"),
        ({"lora_args": {"rank": 0, "scale": 2.0}}, "rank of lora_args must be from 1"),
        ({"lora_args": {"rank": 4}}, "lacks 'scale'"),
    ],
)
def test_params_that_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_int4(tmp_path, "spinquant")
    (tmp_path / "params.json").write_text(json.dumps({**params("spinquant"), **change}))
    with pytest.raises(BadFile, match=message):
        open_checkpoint(tmp_path)


def test_a_width_that_has_no_hadamard_transform(tmp_path: Path) -> None:
    write_int4(tmp_path, "spinquant")
    (tmp_path / "params.json").write_text(json.dumps({**params("spinquant"), "multiple_of": 96}))
    with pytest.raises(BadFile, match="ffn_dim must be a power of two from 16"):
        open_checkpoint(tmp_path)


def test_a_release_has_its_own_context() -> None:
    """Meta made the int4 ones for 8,192 positions; factor 32 is what the published configs say."""
    from puna.weights.checkpoints.meta import read_params

    shape = {
        "dim": 2048, "ffn_dim_multiplier": 1.5, "multiple_of": 256, "n_heads": 32, "n_kv_heads": 8,
        "n_layers": 16, "norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": True,
        "vocab_size": 128256,
    }  # fmt: skip
    for int4, context in ((True, 8192), (False, 131072)):
        config = read_params(shape, 128256, int4)
        assert config.context_length == context
        assert config.rope_scaling is not None
        assert config.rope_scaling.factor == 32


@pytest.mark.parametrize("output", ["absent", "equal", "other scales"])
def test_a_tied_output_is_recognised(output: str, tmp_path: Path) -> None:
    write_int4(tmp_path, "qlora")
    stored = {name: t for name, t in state_dict("qlora").items() if not name.startswith("output")}
    if output != "absent":
        stored["output.weight"] = stored["tok_embeddings.weight"].clone()
        stored["output.scales"] = stored["tok_embeddings.scales"] * (2 if output == "other scales" else 1)
    torch.save(stored, tmp_path / "consolidated.00.pth")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.config.tied == (output != "other scales")
        assert np.isfinite(reference(checkpoint)).all()


def test_damaged_files_open_or_are_refused(scheme: str, folder: Path) -> None:
    for case in range(60):
        rng = np.random.default_rng([5, case])
        path = folder / ("params.json" if case % 3 == 0 else "consolidated.00.pth")
        whole = path.read_bytes()
        damaged = bytearray(whole)
        for _ in range(int(rng.integers(1, 3))):
            damaged[int(rng.integers(len(whole)))] = int(rng.integers(32, 127))
        path.write_bytes(damaged)
        with suppress(BadInput), open_checkpoint(folder) as checkpoint:
            values(checkpoint)
        path.write_bytes(whole)


def test_show_says_how_it_is_quantized(scheme: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from puna.cli.main import main

    assert main(["show", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["quantization"]
    made = "SpinQuant" if scheme == "spinquant" else "QLoRA of rank 4"
    assert found == f"Meta's int4 ({made}), groups of 32"


def test_tensor_parallel_is_refused(scheme: str, folder: Path) -> None:
    from puna.core import BadValue
    from puna.runtime.torch_shard import check_ranks

    with open_checkpoint(folder) as checkpoint, pytest.raises(BadValue, match="plain matrices only, got 2"):
        check_ranks(checkpoint.config, 2)
