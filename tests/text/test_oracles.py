"""Ids of the whole corpus against other tokenizers: their answers are kept by golden/make_text.py."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import pytest
from text import corpus
from text.vocabularies import (
    BYTE,
    CONTROL,
    GOLDEN,
    NORMAL,
    UNKNOWN,
    from_ranks,
    llama2_tokenizer,
    sentencepiece,
    small_sentencepiece,
    smollm2_data,
    smollm2_ranks,
    smollm2_tokenizer,
)

from puna.text import pretokenizers
from puna.text.tokenizer import Tokenizer

ORACLES = json.loads((GOLDEN / "text_ids.json").read_text(encoding="utf-8"))["oracles"]
LINES = corpus.lines()

# Bytes that SmolLM2 has no token for, and drops as the tokenizer does that it was trained with.
MISSING = {token[0] for token in smollm2_ranks()[-21:]}


def check(oracle: str, encode: Callable[[str], Sequence[int]]) -> None:
    """`encode` gives for every line what the oracle gave."""
    results = [list(encode(line)) for line in LINES]
    for line, ours, theirs in zip(corpus.HARD, results, ORACLES[oracle].get("hard", []), strict=False):
        assert ours == theirs, repr(line)
    digests = [sha256(json.dumps(results[i : i + 50]).encode()).hexdigest() for i in range(0, len(LINES), 50)]
    wrong = [
        i for i, (ours, theirs) in enumerate(zip(digests, ORACLES[oracle]["digests"], strict=True))
        if ours[:12] != theirs
    ]  # fmt: skip
    assert not wrong, (
        f"{oracle}: differs in lines {50 * wrong[0]} to {50 * wrong[0] + 49} (and {len(wrong)} parts)"
    )


def test_the_corpus_is_large() -> None:
    assert len(LINES) > 5000


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "smaug-bpe", "llama4", "default"])
def test_ids_are_llama_cpps(pre: str) -> None:
    check(f"llama.cpp/{pre}", lambda text: smollm2_tokenizer(pre).encode(text, bos=False))


def test_ids_with_special_tokens_are_transformers() -> None:
    """Special tokens are found where transformers finds them."""
    check("transformers/gpt-2/special", lambda text: smollm2_tokenizer("gpt-2").encode(text, special=True))


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "llama4"])
def test_words_are_those_of_the_published_expressions(pre: str) -> None:
    split = pretokenizers.splitter(pretokenizers.find(pre))
    check(f"cuts/{pre}", lambda text: [len(word) for word in split(text)])


@pytest.mark.parametrize("pre", ["llama-bpe", "llama4"])
def test_ids_over_ranks_are_tiktokens(pre: str) -> None:
    tokenizer = Tokenizer.from_gguf(from_ranks(smollm2_ranks(), pre, {}))
    check(f"tiktoken/{pre}", tokenizer.encode)


def test_ids_are_sentencepieces() -> None:
    check("sentencepiece/small", lambda text: llama2_tokenizer().encode(text, bos=False))


def test_ids_without_byte_tokens_are_sentencepieces() -> None:
    tokenizer = Tokenizer.from_gguf(small_sentencepiece(byte_fallback=False))
    check("sentencepiece/small/unknown", lambda text: tokenizer.encode(text, bos=False))


def test_ids_are_the_tokenizers_librarys() -> None:
    """The pre-tokenizer that SmolLM2 was published with, and that library's own merging."""
    from tokenizers import Tokenizer as Reference
    from tokenizers import models, pre_tokenizers

    data = smollm2_data()
    vocabulary = {token: i for i, token in enumerate(data["tokens"])}
    reference = Reference(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in data["merges"]]))
    reference.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for line, theirs in zip(LINES, reference.encode_batch(LINES), strict=True):
        assert smollm2_tokenizer().encode(line) == theirs.ids, repr(line)


@pytest.mark.parametrize("line", corpus.HARD + corpus.LONG)
def test_text_comes_back(line: str) -> None:
    spelled = "".join(character for character in line if not MISSING & set(character.encode()))
    assert smollm2_tokenizer().decode(smollm2_tokenizer().encode(line)) == spelled
    assert llama2_tokenizer().decode(llama2_tokenizer().encode(line, bos=False)) == line.replace(
        "\u2581", " "
    )


@pytest.mark.peers
def test_ids_of_llama_2_are_sentencepieces() -> None:
    """Set LLAMA_TOKENIZER to the file that golden/make_text.py takes as its second."""
    path = os.environ.get("LLAMA_TOKENIZER")
    if path is None:
        pytest.skip("needs the vocabulary of Llama 2")
    tokenizer = Tokenizer.from_gguf(sentencepiece(llama2_pieces(json.loads(Path(path).read_text("utf-8")))))
    check("sentencepiece/llama2", lambda text: tokenizer.encode(text, bos=False))


def llama2_pieces(data: dict[str, list[str]]) -> list[tuple[str, float, int]]:
    """Scores fall with ids, but for runs of spaces, which share the lowest."""
    kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(data["vocab"]) - 259)
    runs = [len(piece) > 1 and set(piece) == {"\u2581"} for piece in data["vocab"]]
    scores = [-1e9 if run else -float(max(0, i - 259)) for i, run in enumerate(runs)]
    return list(zip(data["vocab"], scores, kinds, strict=True))


@pytest.mark.peers
@pytest.mark.parametrize(("generation", "pre"), [("llama3", "llama-bpe"), ("llama4", "llama4")])
def test_ids_are_metas(generation: str, pre: str) -> None:
    """Meta's own vocabularies, which llama-models carries; its ids are golden."""
    package = importlib.util.find_spec("llama_models")
    if package is None or package.origin is None:
        pytest.skip("needs llama-models 0.3.0 (pip install --no-deps llama-models==0.3.0)")
    file = Path(package.origin).parent / generation / "tokenizer.model"
    ranks = [base64.b64decode(line.split()[0]) for line in file.read_bytes().splitlines()]
    tokenizer = Tokenizer.from_gguf(from_ranks(ranks, pre, {"<|begin_of_text|>": len(ranks)}))
    check(f"meta/{pre}", tokenizer.encode)
