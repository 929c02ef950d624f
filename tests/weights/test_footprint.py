"""Bytes of weights in a format, against files and published sizes."""

from __future__ import annotations

import pytest

from puna.core import BadValue
from puna.model.catalog import find
from puna.model.config import ModelConfig
from puna.model.sizes import n_parameters
from puna.weights.footprint import weight_bytes
from puna.weights.synthetic import FILE_TYPES, synthetic_checkpoint


@pytest.mark.parametrize("quant", sorted(set(FILE_TYPES) - {"bf16"}))  # which has norms in 32 bits there
def test_gguf_types_are_exact(quant: str) -> None:
    config = ModelConfig(256, 9, 4, 2, 64, 512, 96, 1e-5, 1e4, 128, tied=True)
    with synthetic_checkpoint(config, quant) as checkpoint:
        assert weight_bytes(config, quant) == checkpoint.n_bytes


def test_two_bytes_each() -> None:
    for name in ("llama-3.1-8b", "llama-4-scout", "llama-3.2-11b-vision"):
        assert weight_bytes(find(name).config, "bf16") == 2 * n_parameters(find(name).config)


@pytest.mark.parametrize(
    ("name", "form", "gigabytes"),
    [
        # Scout in int4 is what Meta says fits one GPU of 80 GB; Maverick in fp8 one host of eight
        ("llama-4-scout", "int4", (54, 75)),
        ("llama-4-maverick", "fp8", (401, 8 * 75)),
        # Meta's card of 3.2: 1083 MB (SpinQuant) and 1127 MB (QLoRA) for 1B, 2435 and 2529 MB for 3B
        ("llama-3.2-1b", "int4", (1.0, 1.13)),
        ("llama-3.2-3b", "int4", (2.3, 2.53)),
    ],
)
def test_metas_recipes_have_about_the_published_size(
    name: str, form: str, gigabytes: tuple[float, float]
) -> None:
    assert gigabytes[0] < weight_bytes(find(name).config, form) / 1e9 < gigabytes[1]


def test_an_unknown_format_gets_the_closest() -> None:
    with pytest.raises(BadValue, match="did you mean 'q4_k_m'"):
        weight_bytes(find("smollm2").config, "q4_km")
