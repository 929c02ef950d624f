"""How byte-level BPE vocabularies cut text into words before merging: GGUF's `tokenizer.ggml.pre`, by name.

A scheme is the regular expression that the vocabulary was trained with; every match, and every stretch
between matches, is a word. The names are those that llama.cpp gives to the same schemes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from puna.core import Unsupported, closest


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to cut text, with what the GGUF format ties to its name."""

    patterns: tuple[str, ...]  # applied one after the other, each inside the words of the one before
    whole_words: bool = False  # a word that is a token is not merged from parts, as in tiktoken
    add_bos: bool = False  # where the file does not say


# Radford et al. 2019 (GPT-2).
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Each digit alone, then GPT-2's inside the rest: (?![^\s\p{N}]) is its (?!\S) with a digit as an end.
_DIGITS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"

# Meta's Llama 3 (as OpenAI's cl100k, digits in threes).
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Meta's Llama 4 (OpenAI's o200k): words break where case does, marks belong to words.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LLAMA4 = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# What llama.cpp does for files that name none: punctuation apart, digits in threes.
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")

_SCHEMES = {
    Scheme(_DEFAULT): ("default",),
    Scheme((_GPT2,)): (
        "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "a.x-4.0", "mellum", "exaone4",
        "granite-docling",
    ),
    Scheme((_DIGITS,)): (
        "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2",
    ),
    Scheme((_LLAMA3,), whole_words=True, add_bos=True): (
        "llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    ),
    Scheme((_LLAMA3,)): ("smaug-bpe", "dbrx"),
    Scheme((_LLAMA4,), whole_words=True): ("llama4", "gpt-4o", "kanana2", "talkie", "minimax-m2"),
}  # fmt: skip
_BY_NAME = {name: scheme for scheme, names in _SCHEMES.items() for name in names}


def find(name: str) -> Scheme:
    """The scheme that a file names; raises Unsupported with the known names."""
    if name not in _BY_NAME:
        raise Unsupported(
            f"the file's pre-tokenizer (tokenizer.ggml.pre) is {name!r}, which Puna does not know"
            f"{closest(name, list(_BY_NAME))}; known are {', '.join(_BY_NAME)}"
        )
    return _BY_NAME[name]


def name_of(patterns: tuple[str, ...], *, whole_words: bool) -> str | None:
    """The first name of the scheme with these expressions, or None.

    Where only the other treatment of whole words is known (Llama 4's), its name: merges made of ranks reach
    every token, and it makes no difference.
    """
    known = [(scheme, names[0]) for scheme, names in _SCHEMES.items() if scheme.patterns == patterns]
    known.sort(key=lambda row: row[0].whole_words != whole_words)
    return known[0][1] if known else None


_LONG = 1 << 14  # characters
GPT2_PATTERNS, DIGITS_PATTERNS = (_GPT2,), (_DIGITS,)


def splitter(scheme: Scheme) -> Callable[[str], list[str]]:
    """A function that cuts text into words; joined, they are the text again.

    Long texts are cut as a batch, for which other threads need not wait: cut one by one, a megabyte takes a
    second of all of them.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Sequence, Split

    cut = Sequence([Split(Regex(pattern), "isolated") for pattern in scheme.patterns])
    words = Tokenizer(WordLevel({"word": 0}, unk_token="word"))
    words.pre_tokenizer = cut

    def split(text: str) -> list[str]:
        if len(text) < _LONG:
            return [word for word, _ in cut.pre_tokenize_str(text)]
        (found,) = words.encode_batch([text], add_special_tokens=False)
        return [text[start:end] for start, end in found.offsets]

    return split
