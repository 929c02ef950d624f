"""Bytes of weights in a format, against files and published sizes."""

from __future__ import annotations

import pytest

from puna.core import BadValue
from puna.model.catalog import find
from puna.model.config import ModelConfig
from puna.model.sizes import n_parameters
from puna.weights.footprint import weight_bytes
from puna.weights.quantize.mixes import FILE_TYPES
from puna.weights.synthetic import synthetic_checkpoint


@pytest.mark.parametrize("quant", sorted(set(FILE_TYPES) - {"bf16"}))  # which has norms in 32 bits there
def test_gguf_types_are_exact(quant: str) -> None:
    config = ModelConfig(256, 9, 4, 2, 64, 512, 96, 1e-5, 1e4, 128, tied=True)
    with synthetic_checkpoint(config, quant) as checkpoint:
        assert weight_bytes(config, quant) == checkpoint.n_bytes


def test_two_bytes_each() -> None:
    for name in ("llama-3.1-8b", "llama-4-scout", "llama-3.2-11b-vision"):
        assert weight_bytes(find(name).config, "bf16") == 2 * n_parameters(find(name).config)


@pytest.mark.parametrize(("name", "mebibytes"), [("llama-3.2-1b", 1083), ("llama-3.2-3b", 2435)])
def test_int4_of_llama_32_is_as_large_as_metas_programs(name: str, mebibytes: int) -> None:
    """The SpinQuant column of Meta's model card of Llama 3.2, which counts in 2**20 bytes."""
    assert weight_bytes(find(name).config, "int4") / 2**20 == pytest.approx(mebibytes, rel=0.005)


def test_llama_4_fits_where_meta_says() -> None:
    """Scout in int4 on one GPU of 80 GB, Maverick in fp8 on one host of eight."""
    assert weight_bytes(find("llama-4-scout").config, "int4") < 75e9
    assert 401e9 < weight_bytes(find("llama-4-maverick").config, "fp8") < 8 * 75e9


def test_an_unknown_format_gets_the_closest() -> None:
    with pytest.raises(BadValue, match="did you mean 'q4_k_m'"):
        weight_bytes(find("smollm2").config, "q4_km")
