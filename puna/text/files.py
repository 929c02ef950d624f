"""The tokenizer and chat template of a folder of Hugging Face's or Meta's layout, read and written.

Everything is turned into the keys `tokenizer.*` of GGUF metadata, one description for all formats:
vocabulary.py reads it, and a GGUF file can carry it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.core import BadFile
from puna.text.sentencepiece_model import read_sentencepiece, write_sentencepiece
from puna.text.tiktoken_file import can_write_tiktoken, is_tiktoken, read_tiktoken, write_tiktoken
from puna.text.tokenizer_json import UNUSED, first_token, read_tokenizer_json, write_tokenizer_json

_KEY = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_MAX_PADDING = 1024  # rows of the embedding table beyond the vocabulary, to round its size up

# Files that say how text becomes ids; they are copied as they are where source and target have them alike.
HF_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
# How pictures become tiles; copied where there is a folder to copy from and one to copy to.
PICTURE_FILES = ("preprocessor_config.json", "processor_config.json")
_ROLES = ("bos", "eos")


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def read_folder(folder: Path, vocab_size: int | None = None) -> dict[str, Any]:
    """`tokenizer.*` metadata of a folder: tokenizer.json or tokenizer.model, and what stands beside them.

    With `vocab_size`, the rows of the model's embedding table, unused tokens fill up the vocabulary, and one
    that is too large or far too small is refused as another model's. Raises BadFile and Unsupported, naming
    the file.
    """
    try:
        metadata = _read(folder)
        if vocab_size is not None:
            _fill(metadata, vocab_size)
    except BadFile as error:
        raise type(error)(f"{folder}: {error}") from None
    return metadata


def _read(folder: Path) -> dict[str, Any]:
    config = _json(folder / "tokenizer_config.json")
    metadata: dict[str, Any]
    if (folder / "tokenizer.json").is_file():
        parsed = _json(folder / "tokenizer.json")
        metadata = read_tokenizer_json(parsed)
        _take_scores(metadata, folder / "tokenizer.model")
        _set_roles(metadata, folder, config)
        _set_add_bos(metadata, config, first_token(parsed))
    elif (folder / "tokenizer.model").is_file():
        metadata = _read_model(folder / "tokenizer.model")
        _append(metadata, _json(folder / "added_tokens.json"))
        _set_roles(metadata, folder, config)
    else:
        raise BadFile(
            "the folder must hold a tokenizer, tokenizer.json and tokenizer.model are missing; get one of "
            "them"
        )
    template = _template(folder, config)
    return metadata if template is None else metadata | {_TEMPLATE: template}


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        parsed = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError):
        raise BadFile(f"{path.name} must be JSON, and is not or cannot be read; get it again") from None
    if not isinstance(parsed, dict):
        raise BadFile(f"{path.name} must be a JSON object, found a {type(parsed).__name__}; get it again")
    return parsed


def _read_model(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
        return read_tiktoken(raw) if is_tiktoken(raw) else read_sentencepiece(raw)
    except OSError as error:
        raise BadFile(f"{path.name} cannot be read: {error.strerror}") from None
    except BadFile as error:
        raise type(error)(f"{path.name}: {error}") from None


def _take_scores(metadata: dict[str, Any], path: Path) -> None:
    """The model's own scores, where its file is there too and has the same pieces: tokenizer.json has
    none.
    """
    if metadata[_KEY + "model"] != "llama" or not path.is_file():
        return
    own = _read_model(path)
    tokens, scores = own[_KEY + "tokens"], own.get(_KEY + "scores")
    if scores is not None and metadata[_KEY + "tokens"][: len(tokens)] == tokens:
        metadata[_KEY + "scores"] = scores + metadata[_KEY + "scores"][len(tokens) :]


def _append(metadata: dict[str, Any], added: Mapping[str, Any]) -> None:
    """Tokens of added_tokens.json, beyond those of the model file."""
    tokens = metadata[_KEY + "tokens"]
    for name, i in sorted(added.items(), key=lambda item: str(item[1])):
        if not isinstance(i, int) or (i < len(tokens) and tokens[i] != name) or i > len(tokens):
            raise BadFile(
                f"added_tokens.json gives {name!r:.40} the id {i!r:.20}, which does not follow the others"
            )
        if i == len(tokens):
            tokens.append(name)
            metadata[_KEY + "token_type"].append(4)
            if _KEY + "scores" in metadata:
                metadata[_KEY + "scores"].append(0.0)


def _set_roles(metadata: dict[str, Any], folder: Path, config: Mapping[str, Any]) -> None:
    """Special ids: by name in the tokenizer's files, else by id in the model's."""
    names = _json(folder / "special_tokens_map.json") | {k: v for k, v in config.items() if v is not None}
    ids = {token: i for i, token in enumerate(metadata[_KEY + "tokens"])}
    described = _json(folder / "config.json")
    padding = ids.get(str(_name(names.get("pad_token"))))
    if padding is not None:
        metadata[_KEY + "padding_token_id"] = padding
    for role in _ROLES:
        name = _name(names.get(f"{role}_token"))
        token_id = described.get(f"{role}_token_id")
        if isinstance(name, str):
            if name not in ids:
                raise BadFile(
                    f"{role}_token is {name!r:.40}, which the vocabulary lacks; is it another model's?"
                )
            metadata[f"{_KEY}{role}_token_id"] = ids[name]
        elif f"{role}_token" not in names and _is_id(token_id, ids):
            metadata.setdefault(f"{_KEY}{role}_token_id", token_id)
    ends = _json(folder / "generation_config.json").get("eos_token_id", described.get("eos_token_id"))
    others = [i for i in (ends if isinstance(ends, list) else [ends]) if _is_id(i, ids)]
    others = [i for i in others if i != metadata.get(_KEY + "eos_token_id")]
    for role, token_id in zip(("eot", "eom"), others, strict=False):
        metadata[f"{_KEY}{role}_token_id"] = token_id


def _name(found: Any) -> Any:
    """Of a token that stands by its text, or as an object with its properties."""
    return found.get("content") if isinstance(found, dict) else found


def _is_id(found: Any, ids: Mapping[str, int]) -> bool:
    return type(found) is int and 0 <= found < len(ids)


def _set_add_bos(metadata: dict[str, Any], config: Mapping[str, Any], first: str | None) -> None:
    """As transformers does it: Llama's own class follows the config, the others follow the file."""
    stated = config.get("add_bos_token")
    if isinstance(stated, bool) and (first is None or "Llama" in str(config.get("tokenizer_class"))):
        add = stated
    else:
        add = first is not None
    bos = metadata.get(_KEY + "bos_token_id")
    if first is not None and bos is None and first in metadata[_KEY + "tokens"]:
        metadata[_KEY + "bos_token_id"] = metadata[_KEY + "tokens"].index(first)
    metadata[_KEY + "add_bos_token"] = add and _KEY + "bos_token_id" in metadata


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else the tokenizer's configuration, which may have several by name."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise BadFile("chat_template.jinja must be UTF-8 text, and is not; get it again") from None
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    if found is not None and not isinstance(found, str):
        raise BadFile("chat_template of tokenizer_config.json must be text, or texts by name; get it again")
    return found


def _fill(metadata: dict[str, Any], vocab_size: int) -> None:
    """Unused tokens up to the size of the embedding table."""
    tokens = metadata[_KEY + "tokens"]
    missing = vocab_size - len(tokens)
    if not 0 <= missing <= _MAX_PADDING:
        raise BadFile(
            f"the tokenizer has {len(tokens):,} tokens and the model {vocab_size:,} rows of embeddings; it "
            "is another model's, bring the right one"
        )
    metadata[_KEY + "tokens"] = tokens + [f"[PAD{i}]" for i in range(len(tokens), vocab_size)]
    metadata[_KEY + "token_type"] = metadata[_KEY + "token_type"] + [UNUSED] * missing
    if _KEY + "scores" in metadata:
        metadata[_KEY + "scores"] = metadata[_KEY + "scores"] + [0.0] * missing


def hf_files(metadata: Mapping[str, Any], context_length: int) -> dict[str, bytes]:
    """The files by which transformers reads the tokenizer of `tokenizer.*` metadata; none without tokens."""
    if metadata.get(_KEY + "model") not in ("gpt2", "llama"):
        return {}
    tokens = metadata[_KEY + "tokens"]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
        "model_input_names": ["input_ids", "attention_mask"],  # transformers 4 would add token types
    }
    for role, name in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        token_id = metadata.get(f"{_KEY}{role}_token_id")
        if token_id is not None and 0 <= token_id < len(tokens):
            config[f"{name}_token"] = tokens[token_id]
    if _KEY + "add_bos_token" in metadata:
        config["add_bos_token"] = bool(metadata[_KEY + "add_bos_token"])
    files = {
        "tokenizer.json": _dump(write_tokenizer_json(metadata)),
        "tokenizer_config.json": _dump(config),
        "generation_config.json": _dump(hf_keys(metadata)),
    }
    if metadata.get(_TEMPLATE) is not None:
        files["chat_template.jinja"] = metadata[_TEMPLATE].encode()
    return files


def _dump(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def hf_keys(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Ids of bos, eos and, if any, padding as config.json and generation_config.json have them."""
    ends = [metadata.get(f"{_KEY}{role}_token_id") for role in ("eos", "eom", "eot")]
    known = sorted({i for i in ends if i is not None})
    keys = {"bos_token_id": metadata.get(_KEY + "bos_token_id")}
    keys["eos_token_id"] = known[0] if len(known) == 1 else known or None
    padding = metadata.get(_KEY + "padding_token_id")
    return keys if padding is None else keys | {"pad_token_id": padding}


def image_keys(metadata: Mapping[str, Any]) -> dict[str, int]:
    """Ids of Llama 4's tokens of images as its config.json has them; none where the vocabulary lacks one."""
    ids = {token: i for i, token in enumerate(metadata.get(_KEY + "tokens", ()))}
    names = {"boi_token_index": "<|image_start|>", "eoi_token_index": "<|image_end|>"}
    names["image_token_index"] = "<|patch|>"
    return {key: ids[name] for key, name in names.items()} if set(names.values()) <= set(ids) else {}


def meta_files(
    metadata: Mapping[str, Any], context_length: int, folder: Path | None = None
) -> dict[str, bytes]:
    """tokenizer.model as Meta's code reads it, with the template that Meta's layout has no place for.

    `folder` is where the metadata came from, if from files: its own tokenizer.model is taken where it has the
    whole vocabulary. A vocabulary that is not Llama 1 to 3's cannot be one: it stays in Hugging Face's form,
    which Puna reads from any folder.
    """
    kind = metadata.get(_KEY + "model")
    own = _own_model(metadata, folder)
    if own is not None:
        files = {"tokenizer.model": own}
    elif kind == "llama":
        files = {"tokenizer.model": write_sentencepiece(metadata)}
    elif kind == "gpt2" and can_write_tiktoken(metadata):
        files = {"tokenizer.model": write_tiktoken(metadata)}
    else:
        return hf_files(metadata, context_length)
    if metadata.get(_TEMPLATE) is not None:
        files["chat_template.jinja"] = metadata[_TEMPLATE].encode()
    return files


def _own_model(metadata: Mapping[str, Any], folder: Path | None) -> bytes | None:
    path = folder / "tokenizer.model" if folder is not None else None
    if path is None or not path.is_file():
        return None
    tokens = _read_model(path)[_KEY + "tokens"]
    return path.read_bytes() if tokens == metadata[_KEY + "tokens"] else None


def stored_files(folder: Path, names: Sequence[str] = HF_FILES) -> dict[str, bytes]:
    """The files of `names` that a folder has, as they are."""
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
