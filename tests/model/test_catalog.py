"""The catalog against numbers that its authors did not compute from it."""

from __future__ import annotations

import pytest

from puna.core import UnknownModel
from puna.model.catalog import CATALOG, find, get, names, of_source
from puna.model.config import ModelConfig
from puna.weights.sources import HubSource, PypiSource, parse

# billions of parameters, as Meta's papers and model cards give them
PUBLISHED = {
    "llama-1-7b": 6.738, "llama-1-13b": 13.016, "llama-1-33b": 32.529, "llama-1-65b": 65.286,
    "llama-2-7b": 6.738, "llama-2-13b-chat": 13.016, "llama-2-70b": 68.977,
    "llama-3-8b": 8.030, "llama-3-70b-instruct": 70.554,
    "llama-3.1-8b": 8.030, "llama-3.1-70b": 70.554, "llama-3.1-405b": 405.85,
    "llama-3.2-1b": 1.236, "llama-3.2-3b-instruct": 3.213, "llama-3.3-70b-instruct": 70.554,
    "smollm2": 0.1345,
}  # fmt: skip


def n_parameters(c: ModelConfig) -> int:
    attention = c.dim * c.head_dim * (2 * c.n_heads + 2 * c.n_kv_heads)
    layer = attention + 3 * c.dim * c.ffn_dim + 2 * c.dim
    return c.n_layers * layer + c.dim + c.vocab_size * c.dim * (1 if c.tied else 2)


@pytest.mark.parametrize(("name", "billions"), PUBLISHED.items())
def test_parameter_totals(name: str, billions: float) -> None:
    assert n_parameters(find(name).config) / 1e9 == pytest.approx(billions, rel=4e-4)


def test_every_name_is_found_in_any_case_and_means_one_model() -> None:
    everything = [name for entry in CATALOG for name in (entry.name, *entry.aliases)]
    assert len(set(everything)) == len(everything) == len(names())
    for entry in CATALOG:
        for name in (entry.name, *entry.aliases):
            assert find(name.upper()) is entry
            assert name == name.lower()


def test_sources_are_well_formed_and_official() -> None:
    for entry in CATALOG:
        if entry.source is None:
            assert entry.licence == "llama1"
            continue
        source = parse(entry.source.text)
        assert isinstance(source, PypiSource) == (entry.name == "smollm2")
        assert of_source(entry.source.text) is entry
        if isinstance(source, HubSource):
            assert source.repo.startswith("meta-llama/")
            assert entry.source.gated


def test_an_unknown_name_gets_the_closest() -> None:
    with pytest.raises(UnknownModel, match=r"no model 'lama-3.2-1b'; did you mean 'llama-3.2-1b'"):
        find("lama-3.2-1b")
    with pytest.raises(UnknownModel, match="puna list --catalog"):
        find("zzzz")
    assert get("zzzz") is None
