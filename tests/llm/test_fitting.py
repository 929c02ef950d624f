"""puna fit: predictions against what a process really takes, and what it proposes instead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest

from puna.bench.session import synthetic_file
from puna.cli.main import main
from puna.core import BadValue, DoesNotFit
from puna.engine.config import EngineConfig
from puna.llm.backend import Backend
from puna.llm.config import LLMConfig
from puna.llm.fitting import described, estimate
from puna.llm.load import needs_of
from puna.model.catalog import CATALOG, find
from puna.model.config import ModelConfig
from puna.model.names import shapes
from puna.model.sizes import encoder_bytes, image_bytes, kv_bytes
from puna.weights.footprint import weight_bytes
from puna.weights.load import write_checkpoint
from puna.weights.synthetic import synthetic_checkpoint

# Fills the context of every sequence and prints the most memory that the process held.
FILL = """
import sys
from pathlib import Path
import puna.llm.model, puna.text.tokenizer, puna.engine.bridge, puna.llm.answer
from puna.bench.jobs import Job
from puna.bench.ours import Ours
from puna.bench.start import peak_bytes
path, context, batch, cache_type = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
Ours(path, context * batch, 1, cache_type, "").run(Job("prefill", context - 1, streams=batch))
print(peak_bytes())
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Shapes whose memory is mostly weights, or mostly cache."""
    folder = tmp_path_factory.mktemp("fit")
    shapes = {
        "weights": (ModelConfig(1024, 4, 16, 2, 64, 4096, 8192, 1e-5, 1e4, 1024, tied=True), "q8_0"),
        "cache": (ModelConfig(256, 32, 8, 8, 32, 256, 4096, 1e-5, 1e4, 4096, tied=False), "q4_0"),
        "floats": (ModelConfig(1024, 4, 16, 16, 64, 4096, 8192, 1e-5, 1e4, 512, tied=False), "bf16"),
    }
    for name, (config, quant) in shapes.items():
        with synthetic_checkpoint(config, quant) as checkpoint:
            write_checkpoint(checkpoint, folder / f"{name}.gguf")
    return {name: folder / f"{name}.gguf" for name in shapes}


@pytest.mark.parametrize(
    ("name", "context", "batch", "cache_type"),
    [
        ("weights", 256, 1, "bf16"),
        ("floats", 512, 1, "f32"),
        ("cache", 2048, 1, "bf16"),
        ("cache", 1024, 3, "bf16"),
        ("cache", 2048, 1, "q8_0"),
    ],
)
def test_the_prediction_is_what_a_process_takes(
    files: dict[str, Path], name: str, context: int, batch: int, cache_type: str
) -> None:
    arguments = [str(files[name]), str(context), str(batch), cache_type]
    done = subprocess.run(
        [sys.executable, "-c", FILL, *arguments], capture_output=True, text=True, check=True
    )
    predicted = estimate(arguments[0], LLMConfig(context=context, batch=batch, cache_type=cache_type)).asked
    assert predicted.total == pytest.approx(int(done.stdout), rel=0.05)


SEE = """
import sys
import numpy as np
from runtime.sight import CONFIGS, see
from puna.bench.start import peak_bytes
print(*see(CONFIGS[sys.argv[1]], peak_bytes))
"""


@pytest.mark.parametrize("name", ["mllama", "llama4"])
def test_a_picture_takes_what_is_predicted(name: str) -> None:
    from runtime.sight import CONFIGS

    done = subprocess.run(
        [sys.executable, "-c", SEE, name], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    before, after = map(int, done.stdout.split())
    config = CONFIGS[name]
    assert after - before == pytest.approx(encoder_bytes(config) + image_bytes(config), rel=0.1)


@pytest.mark.parametrize("available", [6 * 10**9, 24 * 10**9, 60 * 10**9])
@pytest.mark.parametrize(
    "name", ["llama-3.1-8b", "llama-3.2-11b-vision", "llama-4-scout", "codellama-34b", "llama-guard-4-12b"]
)
def test_every_proposal_fits(name: str, available: int) -> None:
    """Pictures, experts and chunked attention included."""
    for batch in (1, 3):
        found = estimate(name, LLMConfig(batch=batch), available=available)
        assert found.asked.fits or all(other.fits for other in found.instead)


def test_what_fits_instead_fits() -> None:
    gb = 10**9
    found = estimate("llama-3.1-8b-instruct", LLMConfig(), "bf16", available=12 * gb)
    assert not found.asked.fits
    assert found.asked.weights == pytest.approx(2 * 8_030_261_248, rel=1e-3)
    assert [other.quant for other in found.instead] == ["q8_0", "q4_k_m", "q4_0"]
    for other in found.instead:
        assert other.fits
        assert other.context % 32 == 0 or other.context == found.asked.context
        more = LLMConfig(context=min(131072, other.context + 64))
        if other.context < 131072:
            assert not estimate("llama-3.1-8b-instruct", more, other.quant, available=12 * gb).asked.fits


def test_nothing_fits() -> None:
    assert estimate("llama-3.1-405b", LLMConfig(), available=10**9).instead == ()


def test_a_context_beyond_the_model(files: dict[str, Path]) -> None:
    with pytest.raises(BadValue, match=r"context must be at most the 512 tokens .* got 513"):
        estimate(str(files["floats"]), LLMConfig(context=513))


# Shapes that no file of random weights can have: by the catalog alone.
@pytest.mark.parametrize(
    "name",
    ["llama-4-scout-instruct", "llama-4-maverick", "llama-3.2-11b-vision", "llama-3.2-90b-vision-instruct"],
)
@pytest.mark.parametrize("quant", ["q4_k_m", "q8_0", "bf16"])
def test_models_with_experts_and_pictures(name: str, quant: str) -> None:
    config = find(name).config
    found = estimate(name, LLMConfig(context=16384, batch=2), quant, available=10**15).asked
    sizes = {key: prod(shape) for key, shape in shapes(config)}
    eyes = sum(n for key, n in sizes.items() if key.startswith("vision"))
    expected = weight_bytes(config, quant) + (0 if quant == "bf16" else 2 * eyes)
    # norms and routers of a GGUF file have 32 bits
    assert found.weights == pytest.approx(expected, rel=1e-3)
    assert found.seen_cache == 2 * (kv_bytes(config, 16384) + image_bytes(config))
    assert found.activations > encoder_bytes(config) > 5e8
    if "vision" in name:
        assert found.cache == found.seen_cache
    else:  # the chunk of each of two sequences, and a step beyond it
        position = 2 * 2 * config.n_kv_heads * config.head_dim  # bytes, in one layer
        n_local = sum(config.chunk(i) is not None for i in range(config.n_layers))
        n_kept = (config.n_layers - n_local) * 2 * 16384 + n_local * 2 * (8192 + 512)
        assert found.cache == n_kept * position + 2 * image_bytes(config)
    assert found.fits


def test_every_model_of_the_catalog_is_answered() -> None:
    for entry in CATALOG:
        found = estimate(entry.name, LLMConfig(context=64), available=10**15).asked
        assert found.fits
        assert found.weights > entry.config.vocab_size * entry.config.dim // 2


def test_random_weights_that_do_not_fit_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puna.bench.session.available_bytes", lambda: 10**9)
    monkeypatch.setattr("puna.bench.session.write_checkpoint", lambda *args: pytest.fail("written"))
    with (
        pytest.raises(DoesNotFit, match=r"llama-3\.1-8b with a context"),
        synthetic_file("llama-3.1-8b", "q4_0"),
    ):
        pass


def test_a_tensor_too_large_to_convert(
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("puna.llm.memory.available_bytes", lambda: 10**6)
    assert main(["convert", str(files["floats"]), str(tmp_path / "out"), "--to", "hf"]) == 2
    assert "converting takes" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(files["cache"]), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["fits"]
    assert report["total"] == sum(report[part] for part in ("weights", "cache", "activations", "process"))
    assert main(["fit", "llama-3.1-405b", "--quant", "bf16"]) == 1
    assert "It does not fit." in capsys.readouterr().out
    assert main(["fit", "llama-3.1-8b", "--quant", "q5"]) == 2
    assert "invalid choice: 'q5'" in capsys.readouterr().err
    assert main(["fit", "lama-3.1-8b"]) == 2
    assert "did you mean" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "ranks", "share"), [("cuda", 2, 0.5), ("cuda", 16, 1 / 8), ("cpu", 2, 1), ("cpu", 16, 2)]
)
def test_ranks_share_the_heads_of_the_cache(device: str, ranks: int, share: float) -> None:
    """Llama 3.1 has eight key/value heads; more ranks than that hold copies."""
    checkpoint = described(find("llama-3.1-8b").config, "bf16")
    whole = needs_of("", checkpoint, "bf16", EngineConfig(), Backend("torch", device))
    parts = needs_of("", checkpoint, "bf16", EngineConfig(), Backend("torch", device, ranks=ranks))
    assert parts.cache_bytes(1000) == share * whole.cache_bytes(1000)
