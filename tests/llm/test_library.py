"""The model store as a server offers it, and what it says of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from llm.tiny_llm import write_tiny_llm

from puna.core import BadInput, UnknownModel
from puna.llm.facts import facts_of
from puna.llm.library import StoreLibrary
from puna.weights import store


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> store.StoredModel:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "home"))
    return store.pull(str(write_tiny_llm(tmp_path / "tiny.gguf")))


def test_another_name_stands_for_the_same_files(stored: store.StoredModel) -> None:
    library = StoreLibrary()
    library.copy("tiny", "Mine")
    assert store.resolve("mine") == store.resolve("tiny")
    library.remove("tiny")
    assert store.resolve("mine").exists()
    library.remove("mine")
    assert not store.list_models()
    assert not stored.folder.exists()


@pytest.mark.parametrize("name", ["../x", "smollm2", "a b", ""])
def test_a_name_that_is_none_is_refused(stored: store.StoredModel, name: str) -> None:
    with pytest.raises(BadInput):
        StoreLibrary().copy("tiny", name)
    assert [model.name for model in store.list_models()] == ["tiny"]


def test_a_model_that_is_not_there_is_named(stored: store.StoredModel) -> None:
    for ask in (lambda: StoreLibrary().copy("tinny", "x"), lambda: StoreLibrary().remove("tinny")):
        with pytest.raises(UnknownModel, match="did you mean 'tiny'"):
            ask()


def test_facts_are_those_of_the_file(stored: store.StoredModel) -> None:
    facts = facts_of(stored.path)
    assert facts.sha256 == hashlib.sha256(stored.path.read_bytes()).hexdigest()
    assert (facts.format, facts.family, facts.quantization) == ("gguf", "llama", "Q8_0")
    assert facts.metadata["llama.embedding_length"] == 64
    assert not any(key.endswith((".tokens", ".merges")) for key in facts.metadata)
    assert facts.capabilities == ("completion", "tools")
    assert facts_of(stored.path, "chatml").capabilities == ("completion",)


def test_a_template_says_whether_there_are_tools(tmp_path: Path) -> None:
    path = write_tiny_llm(tmp_path / "tools.gguf", template="{% if tools %}{{ tools }}{% endif %}")
    facts = facts_of(path)
    assert facts.capabilities == ("completion", "tools")
    assert facts.template.startswith("{% if tools %}")
