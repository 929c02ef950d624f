"""Parameters and cache bytes against numbers that were published or counted by hand."""

from __future__ import annotations

import pytest

from puna.core import BadValue
from puna.model.catalog import CATALOG, find
from puna.model.sizes import kv_bytes, n_active, n_parameters

# Billions of parameters: Meta's papers and cards; for exact ones the tensors of the published checkpoints.
PUBLISHED = {
    "llama-1-7b": 6.738, "llama-1-13b": 13.016, "llama-1-33b": 32.529, "llama-1-65b": 65.286,
    "llama-2-7b": 6.738, "llama-2-13b-chat": 13.016, "llama-2-70b": 68.977,
    "codellama-7b": 6.739, "codellama-13b": 13.016, "codellama-34b": 33.744, "codellama-70b": 68.977,
    "llama-3-8b": 8.030, "llama-3-70b-instruct": 70.554,
    "llama-3.1-8b": 8.030, "llama-3.1-70b": 70.554, "llama-3.1-405b": 405.85,
    "llama-3.2-1b": 1.236, "llama-3.2-3b-instruct": 3.213, "llama-3.3-70b-instruct": 70.554,
    "llama-3.2-11b-vision-instruct": 10.67, "llama-3.2-90b-vision-instruct": 88.6,
    "llama-4-scout": 108.64, "llama-4-maverick": 401.58, "llama-guard-4-12b": 12.0,
    "smollm2": 0.1345,
}  # fmt: skip
# the same, without the image encoder and without experts a token is not sent to
ACTIVE = {"llama-4-scout": 17.17, "llama-4-maverick": 17.18, "llama-3.1-405b": 405.85}


@pytest.mark.parametrize(("name", "billions"), PUBLISHED.items())
def test_parameter_totals(name: str, billions: float) -> None:
    assert n_parameters(find(name).config) / 1e9 == pytest.approx(billions, rel=4e-4)


@pytest.mark.parametrize(("name", "billions"), ACTIVE.items())
def test_active_parameters(name: str, billions: float) -> None:
    assert n_active(find(name).config) / 1e9 == pytest.approx(billions, rel=6e-4)


def test_no_entry_is_left_without_a_published_size() -> None:
    """The size in a name is what Meta rounds to; the exceptions say what else they mean."""
    means = {"scout": 109, "maverick": 400, "smollm2": 0.135, "1b-int4": 0.86}
    for entry in CATALOG:
        stated = next((n for part, n in means.items() if part in entry.name), None)
        if stated is None:
            stated = float(next(w for w in entry.name.split("-") if w[0].isdigit() and w[-1] == "b")[:-1])
        assert n_parameters(entry.config) / 1e9 == pytest.approx(stated, rel=0.25), entry.name


@pytest.mark.parametrize(
    ("name", "n_bytes"),
    [
        ("llama-3.1-8b", 131072),
        ("llama-3.1-70b", 327680),
        ("llama-3.1-405b", 516096),
        ("llama-4-scout", 196608),
    ],
)
def test_cache_of_one_position(name: str, n_bytes: int) -> None:
    assert kv_bytes(find(name).config, 1) == n_bytes


def test_chunked_layers_stop_growing() -> None:
    """Scout: 36 of 48 layers hold at most 8192 positions of 2 * 8 * 128 values."""
    cfg = find("llama-4-scout-instruct").config
    position = 2 * 8 * 128 * 2
    assert kv_bytes(cfg, 8192) == 48 * 8192 * position
    assert kv_bytes(cfg, 8193) == (48 * 8192 + 12) * position
    assert kv_bytes(cfg, 10_485_760) == (36 * 8192 + 12 * 10_485_760) * position
    assert kv_bytes(cfg, 131072, n_images=3) == kv_bytes(cfg, 131072)  # part of the sequence


def test_images_of_llama_32_have_a_cache_of_their_own() -> None:
    """4 tiles of 1601 tokens in each of 8 cross-attention layers."""
    cfg = find("llama-3.2-11b-vision-instruct").config
    image = 8 * 4 * 1601 * 2 * 8 * 128 * 2
    assert kv_bytes(cfg, 100, n_images=2) == kv_bytes(find("llama-3.1-8b").config, 100) + 2 * image


def test_cache_types() -> None:
    cfg = find("llama-3.2-1b").config
    assert kv_bytes(cfg, 64, "f32") == 2 * kv_bytes(cfg, 64)
    assert kv_bytes(cfg, 64, "q8_0") == kv_bytes(cfg, 64) * 34 // 64
    with pytest.raises(BadValue, match="did you mean 'q8_0'"):
        kv_bytes(cfg, 64, "q8")
