"""Names, sources and facts of the catalog; its sizes are in test_sizes.py."""

from __future__ import annotations

import pytest

from puna.core import UnknownModel
from puna.model.catalog import ANNOUNCED, CATALOG, announced, find, get, names, of_source
from puna.weights.pull.sources import HubSource, PypiSource, parse


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


def test_what_was_announced_is_not_released() -> None:
    """No shape of it is made up: it has no entry, and the sentence says why."""
    for model in ANNOUNCED:
        assert announced(model.name.upper()) is model
        assert get(model.name) is None
        with pytest.raises(UnknownModel, match="announced and never released"):
            find(model.name)


# what llama-models 0.3.0 registers (sku_list.py), by its descriptors' repositories
SKUS = """
Llama-4-Scout-17B-16E Llama-4-Maverick-17B-128E Llama-4-Scout-17B-16E-Instruct
Llama-4-Maverick-17B-128E-Instruct Llama-4-Maverick-17B-128E-Instruct-FP8 Llama-3.1-8B Llama-3.1-70B
Llama-3.1-405B Llama-3.1-405B-FP8 Llama-3.1-8B-Instruct Llama-3.1-70B-Instruct Llama-3.1-405B-Instruct
Llama-3.1-405B-Instruct-FP8 Llama-3.2-1B Llama-3.2-3B Llama-3.2-11B-Vision Llama-3.2-90B-Vision
Llama-3.2-1B-Instruct Llama-3.2-3B-Instruct Llama-3.2-1B-Instruct-QLORA_INT4_EO8
Llama-3.2-1B-Instruct-SpinQuant_INT4_EO8 Llama-3.2-3B-Instruct-QLORA_INT4_EO8
Llama-3.2-3B-Instruct-SpinQuant_INT4_EO8 Llama-3.2-11B-Vision-Instruct Llama-3.2-90B-Vision-Instruct
Llama-3.3-70B-Instruct Llama-Guard-4-12B Llama-Guard-3-11B-Vision Llama-Guard-3-1B-INT4 Llama-Guard-3-1B
Llama-Guard-3-8B Llama-Guard-3-8B-INT8
"""


def test_every_release_that_metas_package_registers_is_here() -> None:
    """By the repository's name. Llama 2, 3 and Guard 2 are registered under names the hub does not have."""
    for repo in SKUS.split():
        entry = find(repo)
        assert entry.source is not None
        assert entry.source.text == f"hf:meta-llama/{repo}"


def test_what_goes_together() -> None:
    for entry in CATALOG:
        rows = {"smollm2": 49152, "llama1": 32000, "codellama": 32016, "llama3": 128256, "llama4": 202048}
        assert entry.config.vocab_size == rows[entry.tokenizer or ""], entry.name
        is_base = not any(word in entry.name for word in ("instruct", "chat", "guard", "smollm2"))
        assert (entry.chat_format == "none") == is_base, entry.name
        assert entry.infill == (entry.tokenizer == "codellama" and not entry.note), entry.name
