"""Which files of a repository or folder are a checkpoint in Hugging Face's or Meta's layout, and what can be
said of it before its weights arrive."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from puna.core import BadFile, Unsupported
from puna.weights.folder import INDEX, is_folder_checkpoint, locate
from puna.weights.pull.sources import is_gguf_model

_SHARD = re.compile(r"consolidated\.\d{2}\.pth")
_SMALL = (".json", ".jinja", ".model")  # descriptions, tokenizers, templates
_TERMS = ("license", "use_policy", "notice")  # what has to stay with the weights


def folder_files(names: Iterable[str], where: str) -> tuple[list[str], list[str]]:
    """Small files and files of weights of the checkpoint that lies in one folder, of all `names` there.

    Hugging Face's is taken where both layouts are there. Raises Unsupported where there is none; `where`
    names the place.
    """
    present = sorted(names)
    small = [n for n in present if n.endswith(_SMALL) or n.lower().startswith(_TERMS)]
    hf = [n for n in present if n.endswith(".safetensors") and not n.startswith("consolidated")]
    if hf and "config.json" in present:
        return small, hf
    meta = [n for n in present if _SHARD.fullmatch(n)]
    if meta and "params.json" in present:
        return small, meta
    kinds = ", ".join(sorted({PurePosixPath(name).suffix for name in present} - {""})) or "nothing"
    raise Unsupported(
        f"{where} holds no checkpoint (found: {kinds}); Puna reads .gguf, config.json with .safetensors, and "
        "params.json with consolidated.00.pth"
    )


def needed_weights(small: Mapping[str, Path], weights: list[str], where: str) -> list[str]:
    """Those of `weights` that the model consists of, as its small files (by name) say before gigabytes come.

    Raises what config.json states that Puna does not compute, and BadFile for files that are missing.
    """
    from puna.model.config import from_hf
    from puna.weights.files.safetensors import parse_json
    from puna.weights.prequantized.config import read_quantization

    if not weights[0].endswith(".safetensors"):
        return weights
    try:
        described = parse_json(small["config.json"].read_bytes(), "config.json")
        from_hf(described)
        read_quantization(described)
        if INDEX not in small:
            return weights
        listed = parse_json(small[INDEX].read_bytes(), INDEX).get("weight_map")
        if not isinstance(listed, dict):
            raise BadFile(f"{INDEX} must map tensors to files, found no weight_map; get it again")
    except BadFile as error:
        raise type(error)(f"{where}: {error}") from None
    wanted = sorted(set(map(str, listed.values())))
    missing = [name for name in wanted if name not in weights]
    if missing:
        raise BadFile(f"{where} lacks {missing[0]}, which {INDEX} names; bring it too")
    return wanted


def local_folder(path: Path) -> Path | None:
    """The folder of either layout that a path of this machine means; None where it means a GGUF model."""
    if not path.exists() or (path.is_dir() and not is_folder_checkpoint(path)):
        return None
    if path.is_dir() and any(is_gguf_model(entry.name) for entry in path.iterdir()):
        return None
    found = locate(path)
    return None if found.format == "gguf" else found.path
