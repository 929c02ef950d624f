"""Tokenizers of folders: against Hugging Face's library, sentencepiece and Meta's own code over the same
files.
"""

from __future__ import annotations

import base64
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from text import corpus, templates
from text.vocabularies import (
    CONTROL,
    USER_DEFINED,
    byte_alphabet,
    changed,
    from_ranks,
    llama2_tokenizer,
    small_sentencepiece,
    smollm2,
    smollm2_ranks,
)

from puna.core import BadFile, Unsupported
from puna.text import files, sentencepiece_model, tiktoken_file
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_json import read_tokenizer_json, write_tokenizer_json

LINES = corpus.HARD + corpus.LONG
KEY = "tokenizer.ggml."
Metadata = dict[str, Any]


def plain(metadata: Metadata) -> Metadata:
    """Arrays as lists, as GGUF metadata decodes them."""
    return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in metadata.items()}


def small() -> Metadata:
    """Three control tokens, all bytes, three merges."""
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = ["t h", "th e", "\u0120 the"]
    tokens = [*control, *byte_alphabet(), *(merge.replace(" ", "") for merge in merges)]
    metadata = {
        "model": "gpt2", "pre": "llama-bpe", "tokens": tokens, "merges": merges, "bos_token_id": 1,
        "token_type": [CONTROL] * 3 + [1] * (len(tokens) - 3), "eos_token_id": 2, "add_bos_token": False,
    }  # fmt: skip
    return changed(metadata, {"chat_template": templates.LLAMA2})


def write(folder: Path, made: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, raw in made.items():
        (folder / name).write_bytes(raw)
    return folder


def vocabulary(name: str) -> Metadata:
    n = len(smollm2_ranks())
    made: dict[str, Callable[[], Metadata]] = {
        "smollm": smollm2,
        "gpt-2": lambda: smollm2("gpt-2", {"<think>": USER_DEFINED, "<|tool|>": CONTROL}, add_bos_token=True),
        "llama-bpe": lambda: from_ranks(smollm2_ranks(), "llama-bpe", {"<|begin_of_text|>": n}),
        "llama4": lambda: from_ranks(smollm2_ranks(), "llama4", {}),
        "spm": small_sentencepiece,
        "spm without prefix": lambda: small_sentencepiece(add_space_prefix=False),
    }
    return plain(made[name]())


VOCABULARIES = ("smollm", "gpt-2", "llama-bpe", "llama4", "spm", "spm without prefix")


@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_are_those_of_hugging_faces_library(name: str, tmp_path: Path) -> None:
    """For the file that we write, which then is read back to the same ids as from the metadata.

    But for thousands of spaces: SentencePiece merges the leftmost pair that makes the best piece, and a list
    of merges has to put pairs that make the same piece in some order.
    """
    metadata = vocabulary(name)
    folder = write(tmp_path, files.hf_files(metadata, 2048))
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours, direct = Tokenizer.from_folder(folder), Tokenizer.from_gguf(metadata)
    assert ours.bos_id == direct.bos_id
    assert ours.add_bos == direct.add_bos
    assert ours.special_ids == direct.special_ids
    for line in LINES:
        if name.startswith("spm") and " " * 1000 in line:
            continue
        expected = theirs.encode(line, add_special_tokens=False).ids
        assert ours.encode(line, bos=False, special=True) == expected, repr(line)
        assert direct.encode(line) == ours.encode(line), repr(line)
        begun = theirs.encode(line).ids
        if expected[:1] != [ours.bos_id]:  # a text that begins with the token gets no second one here
            assert ours.encode(line, special=True) == begun


def test_ids_are_transformers(tmp_path: Path) -> None:
    """What AutoTokenizer makes of a folder, its roles and its template included."""
    transformers = pytest.importorskip("transformers")
    folder = write(tmp_path, files.hf_files(small(), 8192))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_folder(folder)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    assert theirs.chat_template == ours.chat_template
    for line in corpus.HARD:
        assert theirs.encode(line) == ours.encode(line, special=True), repr(line)


def test_published_forms_of_tokenizer_json(tmp_path: Path) -> None:
    """SmolLM2's own pre-tokenizer, and merges as pairs or as strings."""
    metadata = plain(smollm2())
    written = write_tokenizer_json(metadata)
    written["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    }
    written["model"]["merges"] = [" ".join(pair) for pair in written["model"]["merges"]]
    read = read_tokenizer_json(written)
    for key in ("model", "pre", "tokens", "token_type", "merges"):
        assert read[KEY + key] == metadata[KEY + key], key
    written["pre_tokenizer"] = written["pre_tokenizer"]["pretokenizers"][1]
    assert read_tokenizer_json(written)[KEY + "pre"] == "gpt-2"


def set_at(parsed: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        parsed = parsed[int(name) if name.isdigit() else name]
    parsed[int(last) if last.isdigit() else last] = value


@pytest.mark.parametrize(
    ("path", "value", "kind", "message"),
    [
        ("model.type", "WordPiece", Unsupported, "must hold a BPE model, it holds 'WordPiece'"),
        ("model.merges", ["a"], BadFile, "not of the form"),
        ("model.merges", 3, BadFile, "not of the form"),
        ("model.vocab", [], BadFile, "not of the form"),
        ("model.vocab.x", -1, BadFile, "gives the id -1"),
        ("model.vocab.x", 5, BadFile, "gives the id 5 to two tokens"),
        ("model.vocab.x", 1 << 40, BadFile, "ids up to"),
        ("model.dropout", 0.1, Unsupported, "sets 'dropout'"),
        ("normalizer", {"type": "NFC"}, Unsupported, "changes texts before it encodes them"),
        ("pre_tokenizer", {"type": "Whitespace"}, Unsupported, "must cut words by bytes"),
        (
            "pre_tokenizer.pretokenizers.0.pattern.Regex",
            r"\w+",
            Unsupported,
            "in a way that Puna does not know",
        ),
        (
            "pre_tokenizer.pretokenizers.0.behavior",
            "Removed",
            Unsupported,
            "cuts text by Split and ByteLevel",
        ),
        ("added_tokens.0.lstrip", True, Unsupported, "takes spaces around it away"),
        ("added_tokens.0.id", 70, BadFile, "calls token 70"),
        ("added_tokens", 3, BadFile, "not of the form"),
    ],
)
def test_what_is_refused(path: str, value: Any, kind: type[BadFile], message: str) -> None:
    written = json.loads(json.dumps(write_tokenizer_json(small())))
    set_at(written, path, value)
    with pytest.raises(kind, match=message):
        read_tokenizer_json(written)


@pytest.mark.parametrize("part", [{"type": "NFKC"}, {"type": "Prepend", "prepend": "x"}])
def test_sentencepiece_with_other_normalizers(part: Any) -> None:
    written = write_tokenizer_json(plain(small_sentencepiece()))
    written["normalizer"]["normalizers"].append(part)
    with pytest.raises(Unsupported, match=f"changes texts by {part['type']}"):
        read_tokenizer_json(written)


def test_sentencepiece_models(tmp_path: Path) -> None:
    metadata = plain(small_sentencepiece())
    folder = write(tmp_path, files.meta_files(metadata, 2048))
    assert [path.name for path in folder.iterdir()] == ["tokenizer.model"]
    ours = Tokenizer.from_folder(folder)
    for line in LINES:
        assert ours.encode(line) == llama2_tokenizer().encode(line)
    read = files.read_folder(folder)
    for key in ("tokens", "token_type", "bos_token_id", "eos_token_id", "unknown_token_id"):
        assert read[KEY + key] == metadata[KEY + key]
    assert read[KEY + "scores"] == pytest.approx(metadata[KEY + "scores"])


@pytest.mark.peers
def test_sentencepiece_reads_what_we_write(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    raw = sentencepiece_model.write_sentencepiece(plain(small_sentencepiece()))
    theirs = sentencepiece.SentencePieceProcessor(model_proto=raw)
    for line in LINES:
        assert theirs.encode(line) == llama2_tokenizer().encode(line, bos=False), repr(line)


def test_scores_come_from_the_model_file(tmp_path: Path) -> None:
    """tokenizer.json has merges only; where the model file is beside it, its scores are taken."""
    metadata = plain(small_sentencepiece())
    raw = sentencepiece_model.write_sentencepiece(metadata)
    folder = write(tmp_path, {**files.hf_files(metadata, 2048), "tokenizer.model": raw})
    assert files.read_folder(folder)[KEY + "scores"] == pytest.approx(metadata[KEY + "scores"])


@given(st.binary(max_size=100))
def test_any_bytes_are_a_model_or_refused(raw: bytes) -> None:
    for read in (sentencepiece_model.read_sentencepiece, tiktoken_file.read_tiktoken):
        with pytest.raises(BadFile):
            read(raw)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"IQ== 0\nIg== 2\n", "line 2 must be a token in base64 and the rank 1"),
        (b"IQ== 0\n???? 1\n", "line 2 must be"),
        (b"IQ== 0\nIQ== 1\n", "one is there twice"),
        (b"IQ== 0\nIg== 1\n", "must have the 128,000 tokens of Llama 3, found 2"),
    ],
)
def test_bad_tiktoken_files(raw: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(raw)
    with pytest.raises(BadFile, match=message) as caught:
        Tokenizer.from_folder(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: tokenizer.model: ")


def test_llama_3_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of Llama 3's kind, but for its size; its real one is below."""
    ranks = smollm2_ranks()[:2000] + [bytes([b]) for b in range(256)]
    ranks = list(dict.fromkeys(ranks))
    n = len(ranks)
    monkeypatch.setattr(tiktoken_file, "_N_LLAMA_3", n)
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranks)]
    source = write(tmp_path / "source", {"tokenizer.model": b"".join(lines)})
    metadata = files.read_folder(source, n + 256)
    tokenizer = Tokenizer.from_gguf(metadata)
    assert (tokenizer.bos_id, tokenizer.end_ids) == (n, frozenset({n + 1, n + 8, n + 9}))
    assert tokenizer.id("<|image|>") == n + 11
    assert tokenizer.id("<|reserved_special_token_245|>") == n + 255
    assert files.meta_files(metadata, 8192)["tokenizer.model"] == b"".join(lines)
    other = write(tmp_path / "other", files.hf_files(metadata, 8192))
    theirs = tokenizers.Tokenizer.from_file(str(other / "tokenizer.json"))
    for line in corpus.HARD:
        if not line.startswith("<|begin_of_text|>"):
            assert theirs.encode(line).ids == tokenizer.encode(line, special=True), repr(line)


@pytest.mark.peers
def test_ids_are_metas() -> None:
    """Meta's own file, through Meta's own code."""
    package = importlib.util.find_spec("llama_models")
    if package is None or package.origin is None:
        pytest.skip("needs llama-models 0.3.0 (pip install --no-deps llama-models==0.3.0) and tiktoken")
    from llama_models.llama3.tokenizer import Tokenizer as Meta

    folder = Path(package.origin).parent / "llama3"
    theirs, ours = Meta(folder / "tokenizer.model"), Tokenizer.from_folder(folder, 128_256)
    assert ours.end_ids == set(theirs.stop_tokens)
    for line in LINES:
        assert ours.encode(line) == theirs.encode(line, bos=True, eos=False), repr(line)
        named = theirs.encode(line, bos=False, eos=False, allowed_special="all")
        assert ours.encode(line, bos=False, special=True) == named


def config_of(folder: Path, **changes: Any) -> Path:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path, files.hf_files(small(), 2048))


def test_roles(folder: Path) -> None:
    config_of(folder, bos_token={"content": "<|im_start|>", "lstrip": False}, eos_token="<|endoftext|>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2, 5]}))
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 0)
    assert {0, 2, 5} <= tokenizer.end_ids
    config_of(folder, bos_token=None, eos_token=None)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 7, "eos_token_id": 8}))
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (7, 2)
    config_of(folder, eos_token="<nothing>")
    with pytest.raises(BadFile, match="eos_token is '<nothing>', which the vocabulary lacks"):
        Tokenizer.from_folder(folder)


def test_templates(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert Tokenizer.from_folder(folder).chat_template is None
    config_of(folder, chat_template="{{ a }}")
    assert Tokenizer.from_folder(folder).chat_template == "{{ a }}"
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": templates.LLAMA2}]
    config_of(folder, chat_template=named)
    assert Tokenizer.from_folder(folder).chat_template == templates.LLAMA2
    (folder / "chat_template.jinja").write_text("{{ file }}")
    assert Tokenizer.from_folder(folder).chat_template == "{{ file }}"
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(BadFile, match="must be UTF-8 text"):
        Tokenizer.from_folder(folder)


def test_padding_and_other_models_tokenizers(folder: Path) -> None:
    n = Tokenizer.from_folder(folder).vocab_size
    padded = Tokenizer.from_folder(folder, n + 64)
    assert padded.vocab_size == n + 64
    assert padded.token_bytes(n + 63) == b"[PAD%d]" % (n + 63)
    assert padded.encode(f"[PAD{n}]") == Tokenizer.from_folder(folder).encode(f"[PAD{n}]")
    for rows in (n - 1, 128_256):
        with pytest.raises(BadFile, match=f"has {n:,} tokens and the model {rows:,} rows"):
            Tokenizer.from_folder(folder, rows)


def test_added_tokens_beside_a_model_file(tmp_path: Path) -> None:
    folder = write(tmp_path, files.meta_files(plain(small_sentencepiece()), 2048))
    n = Tokenizer.from_folder(folder).vocab_size
    (folder / "added_tokens.json").write_text(json.dumps({"<tool>": n}))
    assert Tokenizer.from_folder(folder).encode("<tool>", bos=False) == [n]
    (folder / "added_tokens.json").write_text(json.dumps({"<tool>": n + 9}))
    with pytest.raises(BadFile, match=f"gives '<tool>' the id {n + 9}"):
        Tokenizer.from_folder(folder)


def test_missing_and_damaged_files(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(BadFile, match=r"tokenizer_config\.json must be JSON"):
        Tokenizer.from_folder(folder)
    with pytest.raises(BadFile, match="must hold a tokenizer"):
        Tokenizer.from_folder(write(tmp_path / "empty", {}))
