"""Show what a model is: shape, parameters, bytes by kind of tensor, cache at any context, licence, checksum.

A model of the catalog that is not on this machine is shown as far as the catalog knows it. With --prompt,
only how it is prompted: by the template of its file, and by the builder of its format.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.cli.common import ProgressBar, add_json, billions, print_facts, print_json, print_table, size
from puna.cli.config_facts import config_facts, config_report
from puna.core import BadInput
from puna.model import catalog
from puna.model.sizes import kv_bytes, n_active, n_parameters
from puna.weights import store

if TYPE_CHECKING:
    from puna.model.config import ModelConfig
    from puna.weights.load import Checkpoint

HELP = "show what a model is made of"

_LONGEST = 60  # characters of a metadata value that the table shows
_CONTEXTS = (1, 8192, 32768, 131072, 1048576, 10485760)  # positions whose cache is shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name, .gguf file, folder or source")
    parser.add_argument(
        "--verify", action="store_true", help="read all of it and compare the checksums first"
    )
    parser.add_argument("--metadata", action="store_true", help="also list the metadata of the file")
    parser.add_argument(
        "--prompt",
        action="store_true",
        help="show instead the prompt of a sample conversation, by the file's template and built from ids",
    )
    parser.add_argument(
        "--chat-format", metavar="NAME", help="with --prompt: the format to build (default: the model's own)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    stored = store.find(args.model)
    announced = catalog.announced(args.model)
    if stored is None and announced is not None:
        return _print_announced(announced, args.json)
    entry = catalog.get(args.model) if stored is None else None
    if args.verify:
        with ProgressBar() as bar:
            store.verify(args.model, bar)
    if args.prompt:
        return _show_prompt(args, stored.name if stored else args.model)
    if args.chat_format is not None:
        raise BadInput("--chat-format says how --prompt builds a prompt; add --prompt, or leave it out")
    report = _of_entry(entry) if entry else _of_file(store.resolve(args.model))
    if stored is not None:
        files = [asdict(file) for file in stored.files]
        report |= {"name": stored.name, "source": stored.source, "pulled": stored.date, "files": files}
        report["licence"] = stored.licence or report["licence"]
    if args.json:
        print_json(report)
    else:
        _print(report, args.metadata)
    return 0


def _show_prompt(args: argparse.Namespace, name: str) -> int:
    from puna.cli.prompts import compare, print_comparison
    from puna.llm.load import read_tokenizer
    from puna.text.formats import FORMATS
    from puna.weights.load import open_checkpoint

    known = catalog.get(name)
    chat_format = known.chat_format if known and known.chat_format in FORMATS else None
    with open_checkpoint(store.resolve(args.model)) as checkpoint:
        tokenizer = read_tokenizer(checkpoint)
    report = compare(tokenizer, args.chat_format or chat_format)
    if args.json:
        print_json(report)
    else:
        print_comparison(tokenizer, report)
    return 0


def _of_entry(entry: catalog.CatalogEntry) -> dict[str, Any]:
    from puna.weights.footprint import FORMATS_SHOWN, weight_bytes

    return {
        "name": entry.name,
        "path": None,
        "source": entry.source.text if entry.source else None,
        "licence": entry.licence,
        "tokenizer": entry.tokenizer,
        "chat_format": entry.chat_format,
        "infill": entry.infill,
        "published_as": entry.weights,
        "note": entry.note or None,
        "parameters": n_parameters(entry.config),
        "active_parameters": n_active(entry.config),
        "bytes_by_format": {form: weight_bytes(entry.config, form) for form in FORMATS_SHOWN},
    } | _of_config(entry.config)


def _of_config(config: ModelConfig) -> dict[str, Any]:
    contexts = sorted({*(n for n in _CONTEXTS if n < config.context_length), config.context_length})
    image = kv_bytes(config, 1, n_images=1) - kv_bytes(config, 1)
    return {
        "config": config_report(config),
        "kv_bytes_per_token": kv_bytes(config, 1),
        "kv_bytes_per_image": image or None,
        "kv_bytes": {str(n): kv_bytes(config, n) for n in contexts},
    }


def _of_file(path: Path) -> dict[str, Any]:
    from puna.weights.load import open_checkpoint
    from puna.weights.pull.sources import is_mmproj

    with open_checkpoint(path) as checkpoint:
        seen = [file.path.name for file in checkpoint.files if is_mmproj(file.path.name)]
        return {
            "name": checkpoint.metadata.get("general.name"),
            "path": str(path),
            "vision_file": seen[0] if seen else None,
            "licence": checkpoint.metadata.get("general.license"),
            "parameters": sum(prod(tensor.shape) for tensor in checkpoint.tensors.values()),
            "active_parameters": n_active(checkpoint.config),
            "bytes": checkpoint.n_bytes,
            "quantization": checkpoint.quantization or None,
            "tensors": _kinds(checkpoint),
            "metadata": {key: _short(value) for key, value in checkpoint.metadata.items()},
        } | _of_config(checkpoint.config)


def _print_announced(model: catalog.Announcement, as_json: bool) -> int:
    if as_json:
        print_json(asdict(model))
        return 0
    facts = {
        "name": model.name,
        "announced": model.date,
        "parameters": f"about {billions(model.parameters)}, {billions(model.active_parameters)} active",
        "experts": model.n_experts,
        "note": model.note,
    }
    print_facts(facts)
    return 0


def _kinds(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Tensors, parameters and bytes of each kind, largest first."""
    kinds: dict[str, dict[str, Any]] = {}
    for tensor in checkpoint.tensors.values():
        row = kinds.setdefault(tensor.kind, {"kind": tensor.kind, "tensors": 0, "parameters": 0, "bytes": 0})
        row["tensors"] += 1
        row["parameters"] += prod(tensor.shape)
        row["bytes"] += tensor.n_bytes
    return sorted(kinds.values(), key=lambda row: -int(row["bytes"]))


def _short(value: Any) -> Any:
    """Long arrays (vocabularies) as their length, and numbers that JSON cannot hold as text."""
    if isinstance(value, list) and len(value) > 16:
        return f"[{len(value):,} items]"
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def _print(report: Mapping[str, Any], with_metadata: bool) -> None:
    infill = ", fills in the middle" if report.get("infill") else ""
    print_facts(
        {
            "name": report["name"],
            "file": report["path"] or "not on this machine",
            "vision file": report.get("vision_file"),
            "source": report.get("source"),
            "pulled": report.get("pulled"),
            "licence": report["licence"],
            "tokenizer": report.get("tokenizer"),
            "prompts": report["chat_format"] + infill if "chat_format" in report else None,
            "published": report.get("published_as"),
            "note": report.get("note"),
            "parameters": _parameters(report),
            "weights": size(report["bytes"]) if "bytes" in report else None,
            "quantized": report.get("quantization"),
            "cache": f"{size(report['kv_bytes_per_token'])} per token in 16 bits",
            "images": f"{size(image)} of cache each" if (image := report["kv_bytes_per_image"]) else None,
        }
    )
    for file in report.get("files", ()):
        print(f"sha256      {file['sha256']}  {file['name']}")
    print()
    print_facts(config_facts(report["config"]))
    _print_tables(report)
    if with_metadata and "metadata" in report:
        print()
        print_facts({key: _cut(value) for key, value in report["metadata"].items()})


def _parameters(report: Mapping[str, Any]) -> str:
    n, active = report["parameters"], report["active_parameters"]
    return f"{n:,}, {active:,} active for a token of text" if active < n else f"{n:,}"


def _print_tables(report: Mapping[str, Any]) -> None:
    if "tensors" in report:
        print()
        rows = [
            (row["kind"], str(row["tensors"]), f"{row['parameters']:,}", size(row["bytes"]))
            for row in report["tensors"]
        ]
        print_table(("KIND", "TENSORS", "PARAMETERS", "BYTES"), rows)
    if "bytes_by_format" in report:
        print()
        print_table(("FORMAT", "ABOUT"), [(form, size(n)) for form, n in report["bytes_by_format"].items()])
    print()
    print_table(
        ("CONTEXT", "CACHE"), [(f"{int(n):,}", size(b)) for n, b in report["kv_bytes"].items() if n != "1"]
    )


def _cut(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
