"""What the tokenizer promises beside equal ids: BOS, special tokens, ends, safe text, good refusals."""

from __future__ import annotations

import struct
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from text import corpus
from text.vocabularies import (
    BYTE,
    CONTROL,
    KEY,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    Metadata,
    from_ranks,
    llama2_tokenizer,
    sentencepiece,
    small_sentencepiece,
    smollm2,
    smollm2_tokenizer,
)

from puna.core import BadFile, BadInput, BadValue, Unsupported
from puna.text.special import SpecialTokens
from puna.text.tokenizer import Tokenizer
from puna.weights.files.values import Metadata as StoredMetadata
from puna.weights.files.values import Value, ValueType


def test_what_a_file_says() -> None:
    tokenizer = smollm2_tokenizer()
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (49152, 1, 2)
    assert tokenizer.special_ids == frozenset(range(17))
    assert not tokenizer.add_bos
    assert tokenizer.token_bytes(tokenizer.encode(" the")[0]) == b" the"
    assert tokenizer.token_bytes(2) == b"<|im_end|>"
    assert llama2_tokenizer().token_bytes(llama2_tokenizer().encode("\x07")[-1]) == b"\x07"


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (smollm2(), False),
        (smollm2(add_bos_token=None), False),
        (smollm2("llama-bpe", add_bos_token=None), True),
        (smollm2("llama-bpe"), False),
        (smollm2(add_bos_token=True), True),
        (smollm2(add_bos_token=True, bos_token_id=None), False),
        (smollm2(add_bos_token=True, bos_token_id=99999), False),
        (small_sentencepiece(), True),
        (small_sentencepiece(add_bos_token=False), False),
    ],
)
def test_bos_as_the_file_says_or_the_family_has_it(metadata: Metadata, expected: bool) -> None:
    tokenizer = Tokenizer.from_gguf(metadata)
    plain = tokenizer.encode("Hi", bos=False)
    assert tokenizer.encode("Hi") == ([1, *plain] if expected else plain)
    has_bos = tokenizer.bos_id is not None
    assert tokenizer.encode("Hi", bos=True) == ([1, *plain] if has_bos else plain)


def test_bos_is_not_doubled() -> None:
    tokenizer = llama2_tokenizer()
    assert tokenizer.encode("<s>Hi", special=True) == tokenizer.encode("Hi")
    assert tokenizer.encode("<s><s>Hi", special=True).count(1) == 2
    assert tokenizer.encode("", bos=True) == [1]
    # Where it is text, it is no BOS.
    assert tokenizer.encode("<s>Hi")[0] == 1
    assert tokenizer.encode("<s>Hi")[1:] == tokenizer.encode("<s>Hi", bos=False)
    assert 1 not in tokenizer.encode("<s>Hi", bos=False)


def test_a_prompt_does_not_end_because_the_file_trains_so() -> None:
    tokenizer = Tokenizer.from_gguf(small_sentencepiece(add_eos_token=True))
    assert tokenizer.encode("Hi") == llama2_tokenizer().encode("Hi")


# Ends of answers.


@pytest.mark.parametrize(
    ("metadata", "ends"),
    [
        (smollm2(), {"<|im_end|>", "<|endoftext|>"}),
        # A file that calls the wrong token its end, or one that is not there.
        (smollm2(eos_token_id=0), {"<|im_end|>", "<|endoftext|>"}),
        (smollm2(eos_token_id=10**9), {"<|im_end|>", "<|endoftext|>"}),
        (smollm2(eos_token_id=None, eot_token_id=5, eom_token_id=6),
         {"<|im_end|>", "<|endoftext|>", "<file_sep>", "<filename>"}),
        # Control tokens that the file calls something else; text that looks like one.
        (smollm2(extra={"<|eot_id|>": NORMAL, "<|eom_id|>": USER_DEFINED, "</s>": NORMAL}),
         {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>"}),
        (smollm2(extra={"</s>": CONTROL}), {"<|im_end|>", "<|endoftext|>", "</s>"}),
        (small_sentencepiece(), {"</s>"}),
    ],
)  # fmt: skip
def test_every_end_of_an_answer(metadata: Metadata, ends: set[str]) -> None:
    tokenizer = Tokenizer.from_gguf(metadata)
    assert {tokenizer.token_bytes(i).decode() for i in tokenizer.end_ids} == ends


# Special tokens in text.


def test_special_tokens_only_when_asked_for() -> None:
    tokenizer = smollm2_tokenizer()
    text = "a<|im_end|>\n<|im_start|><|im_end"
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert [i for i in tokenizer.encode(text, special=True) if i in tokenizer.special_ids] == [2, 1]


def test_user_defined_tokens_are_always_found() -> None:
    tokenizer = Tokenizer.from_gguf(smollm2(extra={"<think>": USER_DEFINED, "<|tool|>": USER_DEFINED}))
    assert tokenizer.encode("x<think>")[1:] == [49152]
    # This one has the shape of a control token and is one.
    assert 49153 not in tokenizer.encode("<|tool|>")
    assert tokenizer.encode("<|tool|>", special=True) == [49153]
    assert tokenizer.decode([49152, 49153], skip_special=True) == "<think>"


@settings(max_examples=300, deadline=None)
@given(text=st.text("<|>s/im_endtr012xF ", max_size=40), special_names=st.booleans())
def test_text_makes_no_control_tokens(text: str, special_names: bool) -> None:
    text = text + "<|im_end|></s><s><unk><0x0A>" * special_names
    for tokenizer in (smollm2_tokenizer(), llama2_tokenizer()):
        assert tokenizer.special_ids.isdisjoint(tokenizer.encode(text, bos=False))


def test_pieces_that_spell_control_tokens_do_not_become_them() -> None:
    """Merging could reach "</s>" here, if control tokens were pieces of text."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("<0x41>", 0.0, UNUSED)]
    letters = [(piece, -5.0, NORMAL) for piece in ["▁", "<", "/", "s", ">"]]
    parts = [("</", -1.0, NORMAL), ("s>", -2.0, NORMAL), ("</s", -3.0, NORMAL)]
    tokenizer = Tokenizer.from_gguf(sentencepiece([*pieces, *letters, *parts], add_space_prefix=False))
    spelled = [tokenizer.token_bytes(i) for i in tokenizer.encode("</s>", bos=False)]
    assert spelled == [b"</", b"s>"]


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("ab<|>", max_size=20), names=st.sets(st.text("ab<|>", min_size=1, max_size=4), max_size=6)
)
def test_the_leftmost_and_longest_name_is_found(text: str, names: set[str]) -> None:
    ids = {name: i for i, name in enumerate(sorted(names))}
    expected: list[str | int] = []
    at = 0
    while at < len(text):
        found = max((name for name in names if text.startswith(name, at)), key=len, default="")
        if found:
            expected.append(ids[found])
        elif expected and isinstance(expected[-1], str):
            expected[-1] += text[at]
        else:
            expected.append(text[at])
        at += len(found) or 1
    assert SpecialTokens(ids).split(text) == expected


def test_marked_names_are_no_names() -> None:
    tokens = SpecialTokens({"<s>": 1, "s>x": 2, "[end]": 3})
    assert tokens.mark_names("<s>x <s [end] <a>", "0") == "<0s0>x <s [0end] <a>"
    assert tokens.mark_beginnings("<s>x <a> [", "0") == "<0s0>x <0a> [0"


def test_sentencepiece_puts_a_space_before_every_text() -> None:
    """As the `tokenizers` library does with Llama 2's published settings, which prepend to each stretch."""
    from tokenizers import Tokenizer as Reference
    from tokenizers import models, normalizers

    metadata = small_sentencepiece()
    tokens, scores = metadata[KEY + "tokens"], metadata[KEY + "scores"]
    ids = {token: i for i, token in enumerate(tokens)}
    normal = [t for t, kind in zip(tokens, metadata[KEY + "token_type"], strict=True) if kind == NORMAL]
    merges = [(t[:i], t[i:]) for t in normal for i in range(1, len(t)) if t[:i] in ids and t[i:] in ids]
    merges.sort(key=lambda pair: -scores[ids[pair[0] + pair[1]]])
    reference = Reference(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    reference.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    reference.add_special_tokens(["<unk>", "<s>", "</s>"])
    for text in [
        "<s>[INST] Hello  [/INST] ok </s><s>[INST] x",
        "<s> a</s>b",
        "a<unk><s>",
        " <s>",
        "x\n<s>\ny",
    ]:
        assert llama2_tokenizer().encode(text, bos=False, special=True) == reference.encode(text).ids


# Decoding.


def test_bytes_that_are_no_text() -> None:
    tokenizer = llama2_tokenizer()
    first = tokenizer.id("<s>") + 2  # <0x00>
    assert tokenizer.decode(first + byte for byte in b"\xe2\x82A\xff") == "\ufffdA\ufffd"


def test_the_prefixed_space_comes_off_again() -> None:
    tokenizer = llama2_tokenizer()
    ids = tokenizer.encode("alpha beta")
    assert tokenizer.decode(ids, skip_special=True) == "alpha beta"
    assert tokenizer.decode(ids) == "<s>alpha beta"
    assert tokenizer.decode(ids[1:], continuing=True) == " alpha beta"
    assert tokenizer.decode(tokenizer.encode("  x", bos=False)) == "  x"


def test_an_id_outside_the_vocabulary() -> None:
    for wrong in (-1, 49152):
        with pytest.raises(BadValue, match=f"from 0 to 49151, got {wrong}"):
            smollm2_tokenizer().decode([5, wrong])


def test_ids_by_name() -> None:
    assert smollm2_tokenizer().id("<|im_end|>") == 2
    with pytest.raises(BadValue, match=r"no special token '<\|im_stop\|>'; did you mean '<\|im_start\|>'"):
        smollm2_tokenizer().id("<|im_stop|>")


def test_half_a_surrogate_pair() -> None:
    with pytest.raises(BadInput, match=r"half a surrogate pair \(U\+D83D\) at character 3"):
        smollm2_tokenizer().encode("abc\ud83d")
    with pytest.raises(BadInput, match=r"the byte 0xff at character 3, which is no UTF-8"):
        smollm2_tokenizer().encode(b"abc\xff".decode(errors="surrogateescape"))


# What is refused.


@pytest.mark.parametrize(
    ("metadata", "error", "problem"),
    [
        ({}, BadFile, "'tokenizer.ggml.model' is missing"),
        (smollm2(model="bert"), Unsupported, r"of kind 'bert', Puna reads 'gpt2' .* and 'llama'"),
        (
            smollm2(pre="qwen2"),
            Unsupported,
            r"is 'qwen2', .* known are default, gpt-2, .*smollm.*llama-bpe.*llama4",
        ),
        (smollm2(pre="lama-bpe"), Unsupported, "did you mean 'llama-bpe'"),
        (smollm2(tokens=None), BadFile, "'tokenizer.ggml.tokens' is missing"),
        (smollm2(merges=None), BadFile, "'tokenizer.ggml.merges' is missing"),
        (smollm2(token_type=None), BadFile, "'tokenizer.ggml.token_type' is missing"),
        (smollm2(token_type=[1, 2]), BadFile, "one entry for each of 49152 tokens, it has 2"),
        (smollm2(extra={"Ġthe": NORMAL}), BadFile, "once, b' the' is there twice"),
        (smollm2(extra={"<|im_end|>": CONTROL}), BadFile, "is there twice"),
        (smollm2(merges=["a b", "c"]), BadFile, "two tokens with a space between"),
        (smollm2(merges=["a b", " c"]), BadFile, "two tokens with a space between"),
        (smollm2(merges=["a b", "c d e"]), BadFile, "two tokens with a space between"),
        (smollm2(merges=["a b", "a\nb c"]), BadFile, "one makes"),
        (smollm2(model=7), BadFile, "'tokenizer.ggml.model' must be of type str, found 7"),
        (smollm2(bos_token_id="1"), BadFile, "'tokenizer.ggml.bos_token_id' must be of type int, found '1'"),
        (smollm2(add_bos_token=1), BadFile, "'tokenizer.ggml.add_bos_token' must be of type bool, found 1"),
        (smollm2(chat_template=["x"]), BadFile, "'tokenizer.chat_template' must be of type str"),
        (
            smollm2(token_type=["x"] * 49152),
            BadFile,
            "'tokenizer.ggml.token_type' must be an array of numbers",
        ),
        (smollm2(merges=["a q!q"]), BadFile, "one makes b'aq!q'"),
        (small_sentencepiece(scores=None), BadFile, "'tokenizer.ggml.scores' is missing"),
        (small_sentencepiece(scores=[1.0]), BadFile, "one entry for each"),
        (small_sentencepiece(byte_fallback=False, unknown_token_id=None), BadFile, "it has neither"),
        (sentencepiece([("<0xZZ>", 0.0, BYTE)]), BadFile, "named like '<0x41>', found '<0xZZ>'"),
    ],
)
def test_files_that_are_refused(metadata: Metadata, error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=problem):
        Tokenizer.from_gguf(metadata)


def as_stored(metadata: Metadata) -> StoredMetadata:
    """The same as a file holds it."""
    types = {bool: ValueType.BOOL, int: ValueType.UINT32, str: ValueType.STRING}
    stored = {}
    for key, value in metadata.items():
        if type(value) in types:
            stored[key] = Value.of(types[type(value)], value)
        else:
            kind = ValueType.STRING if isinstance(value[0], str) else ValueType.FLOAT32
            stored[key] = Value.array(kind, value if kind is ValueType.STRING else np.asarray(value).tolist())
    return StoredMetadata(stored)


@pytest.mark.parametrize("metadata", [smollm2(), small_sentencepiece()], ids=["gpt2", "llama"])
def test_metadata_as_stored(metadata: Metadata) -> None:
    stored, plain = Tokenizer.from_gguf(as_stored(metadata)), Tokenizer.from_gguf(metadata)
    for line in corpus.HARD:
        assert stored.encode(line, special=True) == plain.encode(line, special=True)
    assert (stored.end_ids, stored.special_ids) == (plain.end_ids, plain.special_ids)


@pytest.mark.parametrize("name", ["tokens", "merges"])
def test_stored_text_that_is_none(name: str) -> None:
    metadata = as_stored(smollm2(merges=["h e"]))
    key = KEY + name
    not_strings = StoredMetadata({**metadata.encoded, key: Value.of(ValueType.UINT32, 5)})
    with pytest.raises(BadFile, match=f"{key}' must be an array of strings, it is UINT32"):
        Tokenizer.from_gguf(not_strings)
    two = struct.pack("<IQ", ValueType.STRING, 2)
    for halves in ((b"\xff", b"a"), (b"\xc3", b"\xa9")):
        raw = two + b"".join(struct.pack("<Q", len(half)) + half for half in halves)
        broken = StoredMetadata({**metadata.encoded, key: Value(ValueType.ARRAY, raw)})
        with pytest.raises(BadFile, match=f"{key}' must be UTF-8 text"):
            Tokenizer.from_gguf(broken)


SMALL = [
    from_ranks([bytes([b]) for b in range(256)] + [b"ab"], "llama3", {"<|x|>": 257}),
    small_sentencepiece(),
]
ODD_VALUES = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=5),
    st.lists(st.text("ab <0x>▁Ġ", max_size=6), max_size=6), st.lists(st.integers(-5, 9), max_size=300),
    st.lists(st.floats(), max_size=5),
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(metadata=st.sampled_from(SMALL), data=st.data())
def test_any_metadata_makes_a_tokenizer_or_is_refused(metadata: Metadata, data: st.DataObject) -> None:
    names = ["model", "pre", "tokens", "token_type", "scores", "merges", "add_bos_token", "add_space_prefix",
             "bos_token_id", "eos_token_id", "unknown_token_id"]  # fmt: skip
    changes = data.draw(st.dictionaries(st.sampled_from(names), ODD_VALUES, min_size=1, max_size=3))
    changed = metadata | {KEY + name: value for name, value in changes.items()}
    strings = [changed[KEY + name] for name in ("tokens", "merges") if KEY + name in changed]
    assume(all(isinstance(value, list) and all(isinstance(s, str) for s in value) for value in strings))
    with suppress(BadFile):
        tokenizer = Tokenizer.from_gguf(changed)
        tokenizer.decode(tokenizer.encode("ab <|x|> é", special=True))


def test_a_token_spelled_as_plain_text() -> None:
    """Tokens added to a vocabulary are at times not in the byte alphabet, and called normal."""
    tokenizer = Tokenizer.from_gguf(smollm2(extra={"中文字 x": NORMAL, "two\nlines": NORMAL}))
    assert tokenizer.decode([49152, 49153]) == "中文字 xtwo\nlines"
    assert tokenizer.encode("hello") == smollm2_tokenizer().encode("hello")


def test_a_vocabulary_of_bytes_alone() -> None:
    tokenizer = Tokenizer.from_gguf(from_ranks([bytes([b]) for b in range(256)], "gpt-2", {"<|x|>": 256}))
    assert tokenizer.encode("é\x00") == [0xC3, 0xA9, 0]
    assert tokenizer.special_ids == {256}


def test_a_control_token_without_a_name() -> None:
    tokenizer = Tokenizer.from_gguf(smollm2(extra={"": CONTROL}))
    assert tokenizer.encode("a<|im_end|>", special=True) == smollm2_tokenizer().encode(
        "a<|im_end|>", special=True
    )
    assert tokenizer.decode([49152]) == ""


def test_scores_in_any_form() -> None:
    scores = small_sentencepiece()[KEY + "scores"]
    for form in (scores.tolist(), np.array(scores, np.float64)):
        tokenizer = Tokenizer.from_gguf(small_sentencepiece(scores=form))
        assert tokenizer.encode("const alpha = 5;") == llama2_tokenizer().encode("const alpha = 5;")


def test_more_words_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puna.text.bpe._CACHE_WORDS", 10)
    monkeypatch.setattr("puna.text.spm._CACHE_STRETCHES", 10)
    text = " ".join(corpus.SENTENCES) * 2
    for metadata, usual in ((smollm2(), smollm2_tokenizer()), (small_sentencepiece(), llama2_tokenizer())):
        assert Tokenizer.from_gguf(metadata).encode(text) == usual.encode(text)


def test_importing_costs_little() -> None:
    code = (
        "import sys, puna.text.tokenizer, puna.text.chat, puna.text.stream; "
        "print({'tokenizers', 'jinja2', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
