"""Executors refuse in one sentence what a configuration describes and block.py does not define."""

from __future__ import annotations

import pytest

from puna.core import Unsupported
from puna.model.catalog import CATALOG, find
from puna.model.rope import rope_table
from puna.model.sizes import CACHE_BYTES, kv_bytes
from puna.runtime.native import CACHE_TYPES, NativeExecutor, cache_bytes_per_token
from puna.runtime.supported import refuse_uncomputed

NATIVE_NEEDS = {
    "llama-4-scout": "this model needs an image encoder",
    "llama-3.2-11b-vision": "cross-attention to images, an image encoder",
    "llama-guard-4-12b": "this model needs an image encoder",
}


@pytest.mark.parametrize(("name", "said"), NATIVE_NEEDS.items())
def test_executors_refuse(name: str, said: str) -> None:
    cfg = find(name).config
    with pytest.raises(Unsupported, match=said):
        NativeExecutor(cfg, {}, rope_table(cfg), cache_tokens=64)
    refuse_uncomputed(cfg, native=False)


def test_dense_text_models_are_not_refused() -> None:
    refused = set()
    for entry in CATALOG:
        try:
            refuse_uncomputed(entry.config, native=True)
        except Unsupported:
            refused.add(entry.name)
    assert all("vision" in name or "llama-4" in name or "guard-4" in name for name in refused)
    assert len(refused) == 11


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_bytes_of_the_catalog_are_those_of_the_executor(cache_type: str) -> None:
    assert tuple(CACHE_BYTES) == CACHE_TYPES
    for name in ("llama-2-13b", "llama-3.1-405b", "llama-3.2-1b"):
        cfg = find(name).config
        assert kv_bytes(cfg, 1, cache_type) == cache_bytes_per_token(cfg, cache_type)
