"""Hugging Face's tokenizer.json, read and written, for the two kinds of vocabulary that Llamas have.

What is made of it are the keys `tokenizer.*` of GGUF metadata, which vocabulary.py reads. The file can
describe far more than Llamas need: a part that would change ids and is not known here is refused by its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from puna.core import BadFile, Unsupported
from puna.text import pretokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
_KEY = "tokenizer.ggml."
_SPACE = "\u2581"  # for a space, in SentencePiece's pieces
_MAX_TOKENS = 1 << 22
_MAX_GAPS = 1024  # ids without a token
_LOWEST = -1e9  # the score that Llama 2's own model gives to runs of spaces

Json = Mapping[str, Any]


def read_tokenizer_json(parsed: Json) -> dict[str, Any]:
    """`tokenizer.*` metadata, but for roles and template, which other files of the folder give.

    Raises Unsupported for a part that Puna does not compute, BadFile for what is no such file.
    """
    try:
        model = _object(parsed, "model")
        if model.get("type", "BPE") != "BPE" or "merges" not in model:
            raise Unsupported(f"tokenizer.json must hold a BPE model, it holds {model.get('type')!r}")
        if model.get("byte_fallback"):
            return _sentencepiece(parsed, model)
        return _byte_level(parsed, model)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError):
        raise BadFile("tokenizer.json is not of the form that Hugging Face writes; get it again") from None


def _object(parsed: Json, key: str) -> Json:
    found = parsed[key]
    if not isinstance(found, dict):
        raise TypeError(key)
    return found


def _byte_level(parsed: Json, model: Json) -> dict[str, Any]:
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise Unsupported(f"tokenizer.json sets {key!r}, which no Llama does and Puna cannot")
    if parsed.get("normalizer") is not None:
        raise Unsupported("tokenizer.json changes texts before it encodes them (normalizer); Puna cannot")
    pre = pretokenizers.name_of(
        tuple(_patterns(_parts(parsed.get("pre_tokenizer"), "pretokenizers"))),
        whole_words=bool(model.get("ignore_merges")),
    )
    if pre is None:
        raise Unsupported("tokenizer.json cuts text (pre_tokenizer) in a way that Puna does not know")
    tokens, types = _tokens(parsed, model)
    return {
        _KEY + "model": "gpt2",
        _KEY + "pre": pre,
        _KEY + "tokens": tokens,
        _KEY + "token_type": types,
        _KEY + "merges": _merges(model),
    }


def _parts(found: Any, key: str) -> list[Json]:
    """The parts of a normalizer, pre-tokenizer or post-processor, which may be a sequence of them."""
    if found is None:
        return []
    return list(found[key]) if found["type"] == "Sequence" else [found]


def _patterns(parts: Sequence[Json]) -> Iterator[str]:
    """The expressions by which words are cut, one after the other."""
    if not parts or parts[-1]["type"] != "ByteLevel" or parts[-1].get("add_prefix_space"):
        raise Unsupported("tokenizer.json must cut words by bytes (ByteLevel, without add_prefix_space)")
    kinds = [part["type"] for part in parts]
    if parts[-1].get("use_regex", True):
        if kinds == ["ByteLevel"]:
            yield from pretokenizers.GPT2_PATTERNS
        elif kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
            yield from pretokenizers.DIGITS_PATTERNS
        else:
            raise Unsupported(f"tokenizer.json cuts text by {' and '.join(kinds)}, which Puna does not know")
        return
    for part in parts[:-1]:
        if part["type"] != "Split" or part.get("invert") or part["behavior"] != "Isolated":
            raise Unsupported(f"tokenizer.json cuts text by {' and '.join(kinds)}, which Puna does not know")
        yield part["pattern"]["Regex"]


def _merges(model: Json) -> list[str]:
    """Both spellings in use: "left right", and [left, right]."""
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    for merge in merges:
        if merge.count(" ") != 1:
            raise ValueError(merge)
    return merges


def _tokens(parsed: Json, model: Json) -> tuple[list[str], list[int]]:
    """Tokens and their types by id; ids that nothing has are filled with unused tokens."""
    vocab = _object(model, "vocab")
    added = parsed.get("added_tokens") or []
    highest = max([*vocab.values(), *(token["id"] for token in added)])
    n_known = len(set(vocab.values()) | {token["id"] for token in added})
    if not 0 <= highest < _MAX_TOKENS or highest + 1 - n_known > _MAX_GAPS:
        raise BadFile(f"tokenizer.json has {n_known:,} tokens and ids up to {highest:,}; it is damaged")
    tokens = [f"[PAD{i}]" for i in range(highest + 1)]
    types = [UNUSED] * len(tokens)
    for token, i in vocab.items():
        if types[i] != UNUSED or i < 0:
            raise BadFile(f"tokenizer.json gives the id {i} to two tokens; it is damaged, get it again")
        tokens[i], types[i] = token, NORMAL
    for token in added:
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
            raise Unsupported(
                f"the token {token['content']!r:.40} takes spaces around it away (lstrip, rstrip or "
                "single_word), which Puna cannot"
            )
        i, name = token["id"], token["content"]
        if types[i] != UNUSED and tokens[i] != name:
            raise BadFile(f"tokenizer.json calls token {i} {tokens[i]!r:.40} and {name!r:.40}; get it again")
        tokens[i], types[i] = name, CONTROL if token.get("special") else USER_DEFINED
    return tokens, types


def _sentencepiece(parsed: Json, model: Json) -> dict[str, Any]:
    tokens, types = _tokens(parsed, model)
    for i, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[i] = BYTE
    metadata = {
        _KEY + "model": "llama",
        _KEY + "pre": "default",
        _KEY + "tokens": tokens,
        _KEY + "token_type": types,
        _KEY + "scores": _scores(tokens, types, _merges(model)),
        _KEY + "add_space_prefix": _has_space_prefix(parsed),
    }
    if model.get("unk_token") is not None:
        unknown = tokens.index(model["unk_token"])
        types[unknown] = UNKNOWN
        metadata[_KEY + "unknown_token_id"] = unknown
    return metadata


def _has_space_prefix(parsed: Json) -> bool:
    """Whether a space is put before a text. Everything else that may be done to it is refused."""
    prefix = False
    for part in _parts(parsed.get("normalizer"), "normalizers"):
        if part["type"] == "Prepend" and part["prepend"] == _SPACE:
            prefix = True
        elif part != {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}:
            raise Unsupported(f"tokenizer.json changes texts by {part['type']}, which Puna cannot")
    for part in _parts(parsed.get("pre_tokenizer"), "pretokenizers"):
        if part["type"] != "Metaspace" or part.get("split"):
            raise Unsupported(f"tokenizer.json cuts text by {part['type']}, which Puna cannot")
        scheme = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
        prefix = prefix or scheme != "never"
    return prefix


def _scores(tokens: Sequence[str], types: Sequence[int], merges: Sequence[str]) -> list[float]:
    """Scores that merge in the order of `merges`: minus the place of a piece among all that they make.

    The format has no scores. Where merges of several pieces alternate, as those of Llama 2's runs of spaces
    do, these had equal scores once.
    """
    order: dict[str, int] = {}
    mixed: set[str] = set()
    last = ""
    for merge in merges:
        made = merge.replace(" ", "")
        if made != last and made in order:
            mixed.add(made)
        last = made
        order.setdefault(made, len(order))
    if any(len(set(piece)) > 1 for piece in mixed):
        raise Unsupported("the merges of tokenizer.json have an order that no SentencePiece model gives")
    if mixed:
        mixed = {piece for piece in order if len(set(piece)) == 1 and piece[0] in {m[0] for m in mixed}}
    scores, n_others = [], len(order)
    for token, kind in zip(tokens, types, strict=True):
        if kind != NORMAL:
            scores.append(0.0)
        elif token in order:
            scores.append(_LOWEST if token in mixed else -float(order[token]))
        else:
            scores.append(-float(n_others))
            n_others += 1
    return scores


def write_tokenizer_json(metadata: Json) -> dict[str, Any]:
    """The tokenizer.json of `tokenizer.*` metadata; tokenizers of both kinds read it back the same."""
    tokens, types = metadata[_KEY + "tokens"], [int(t) for t in metadata[_KEY + "token_type"]]
    is_spm = metadata[_KEY + "model"] == "llama"
    unknown = metadata.get(_KEY + "unknown_token_id")
    named = (UNKNOWN, CONTROL, USER_DEFINED)
    added = [_added(i, tokens[i], kind) for i, kind in enumerate(types) if kind in named]
    # Control tokens too: the library gives new ids to those that the vocabulary lacks.
    vocab = {token: i for i, token in enumerate(tokens) if types[i] != UNUSED}
    model: dict[str, Any] = {
        "type": "BPE", "dropout": None,
        "unk_token": tokens[unknown] if is_spm and unknown is not None else None,
        "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": is_spm,
        "byte_fallback": is_spm, "ignore_merges": False, "vocab": vocab,
    }  # fmt: skip
    described: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
    }  # fmt: skip
    if is_spm:
        model["merges"] = merges_of_scores(tokens, metadata[_KEY + "scores"], types)
        described |= _sentencepiece_parts(bool(metadata.get(_KEY + "add_space_prefix", True)))
    else:
        scheme = pretokenizers.find(metadata.get(_KEY + "pre", "default"))
        model["merges"] = [merge.split(" ") for merge in metadata[_KEY + "merges"]]
        model["ignore_merges"] = scheme.whole_words
        described |= _byte_level_parts(scheme.patterns)
    described["post_processor"] = _post_processor(metadata, tokens, is_spm)
    return {**described, "model": model}


def _added(token_id: int, name: str, kind: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": name, **flags, "special": kind != USER_DEFINED}


def merges_of_scores(tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> list[list[str]]:
    """Every way to make a piece of two others, best score first; of equal scores, shorter left parts
    first.
    """
    ids = {token: i for i, token in enumerate(tokens) if types[i] == NORMAL}
    merges = []
    for token, i in ids.items():
        for at in range(1, len(token)):
            if token[:at] in ids and token[at:] in ids:
                merges.append((-scores[i], at, len(token) - at, token[:at], token[at:]))
    return [list(merge[3:]) for merge in sorted(merges, key=lambda merge: merge[:3])]


def _sentencepiece_parts(space_prefix: bool) -> dict[str, Any]:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    normalizers = [{"type": "Prepend", "prepend": _SPACE}, replace] if space_prefix else [replace]
    decoders: list[Json] = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if space_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def _byte_level_parts(patterns: Sequence[str]) -> dict[str, Any]:
    cuts: list[Json] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, to_bytes]},
        "decoder": {**to_bytes, "add_prefix_space": True, "use_regex": True},
    }


def _post_processor(metadata: Json, tokens: Sequence[str], is_spm: bool) -> dict[str, Any] | None:
    """What puts the token that begins a text there."""
    bos = metadata.get(_KEY + "bos_token_id")
    if bos is None or not metadata.get(_KEY + "add_bos_token", is_spm):
        return None
    special, a, b = {"SpecialToken": {"id": tokens[bos], "type_id": 0}}, "A", "B"
    single = [special, {"Sequence": {"id": a, "type_id": 0}}]
    second = {"SpecialToken": {"id": tokens[bos], "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, second, {"Sequence": {"id": b, "type_id": 1}}],
        "special_tokens": {tokens[bos]: {"id": tokens[bos], "ids": [bos], "tokens": [tokens[bos]]}},
    }


def first_token(parsed: Json) -> str | None:
    """The token that the file puts before a text, by name, or None."""
    try:
        for part in _parts(parsed.get("post_processor"), "processors"):
            if part["type"] == "TemplateProcessing" and "SpecialToken" in part["single"][0]:
                return str(part["single"][0]["SpecialToken"]["id"])
    except (KeyError, TypeError, IndexError):
        raise BadFile("tokenizer.json has a post_processor that Hugging Face would not write") from None
    return None
