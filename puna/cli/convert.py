"""Convert a checkpoint between GGUF, Hugging Face's folder and Meta's files.

    puna convert ./Llama-3.1-8B ./llama-3.1-8b.gguf
    puna convert ./Meta-Llama-3-8B ./Llama-3-8B-hf --to hf
    puna convert ./Llama-3.1-70B ./original --to meta --shards 8

SRC is a .gguf file, a folder with config.json and .safetensors, a folder with params.json and
consolidated.00.pth, or a name of the store. Numbers stay as they are, bit by bit, unless --dtype asks for
others. What is interrupted goes on where it stopped when the same command is given again; the output appears
under its name when it is complete and has been read back and compared.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.cli.common import ProgressBar, add_json, print_facts, print_json, size
from puna.core import BadInput, BadValue, DoesNotFit

if TYPE_CHECKING:
    from puna.weights.folder import Format
    from puna.weights.load import Checkpoint
    from puna.weights.targets import Target, Texts

HELP = "convert a checkpoint: GGUF, Hugging Face's folder, Meta's files"

_FORMATS = ("gguf", "hf", "meta")
_DTYPES = ("f32", "f16", "bf16")
_SHARD_GB = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SRC", help="file or folder of a checkpoint, or a name of the store")
    add("destination", metavar="DST", help="a new .gguf file, or a new folder")
    add("--to", choices=_FORMATS, help="the format of DST (default: gguf where DST ends in .gguf)")
    add(
        "--dtype",
        choices=_DTYPES,
        help="round all weights to this (default: keep them; GGUF's norms are f32)",
    )
    add("--shards", type=int, metavar="N", help="meta: files to share the weights out to (default: 1)")
    add("--shard-size", type=float, metavar="GB", help=f"hf: the most of one file (default: {_SHARD_GB:g})")
    add("--mmproj", metavar="FILE", help="vision file of a GGUF source (default: the one beside it)")
    add_verify(parser)
    add_json(parser)


def add_verify(parser: argparse.ArgumentParser) -> None:
    """--verify, for every command that writes a checkpoint."""
    parser.add_argument(
        "--verify",
        choices=("bytes", "logits", "none"),
        default="bytes",
        help="read the output back; logits: also run SRC and DST on a few tokens (default: bytes)",
    )


def agreement_line(report: dict[str, Any]) -> str | None:
    """What --verify logits found, in words."""
    found = report.get("logits")
    return found and (
        f"log-probabilities differ by {found['mean_difference']:.4f} on average; "
        f"{found['same_choice']:.1%} of {found['n_positions']} most likely next tokens are the same"
    )


def run(args: argparse.Namespace) -> int:
    from puna.llm.terms import keep
    from puna.llm.verify import compare
    from puna.weights import store
    from puna.weights.convert import convert
    from puna.weights.load import open_checkpoint
    from puna.weights.targets import plan

    form, destination = _format(args), Path(args.destination).expanduser()
    with open_checkpoint(store.resolve(args.source), args.mmproj) as checkpoint, ProgressBar() as bar:
        target = plan(
            checkpoint,
            form,
            texts_of(checkpoint, form),
            name=destination.stem if form == "gguf" else destination.name,
            dtype=args.dtype and args.dtype.upper(),
            n_files=1 if args.shards is None else args.shards,
            shard_bytes=int((args.shard_size or _SHARD_GB) * 1e9),
        )
        _check_memory(target)
        try:
            result = convert(target, destination, verify=args.verify != "none", progress=bar)
        except KeyboardInterrupt:
            print("\nthe same command goes on from here", file=sys.stderr)
            raise
        terms = keep(checkpoint.folder or checkpoint.paths[0], result.path)
        for note in terms:
            print(note, file=sys.stderr)
        report = {**asdict(result), "path": str(result.path), "notes": list(target.notes), "terms": terms}
        if args.verify == "logits":
            report["logits"] = asdict(compare(checkpoint, destination, same=args.dtype is None))
    if args.json:
        print_json(report)
    else:
        _print(report)
    return 0


def _check_memory(target: Target) -> None:
    """Raise DoesNotFit where the largest tensor, with what making it takes, is more than there is."""
    from puna.llm.memory import available_bytes

    largest = max(target.sources, key=lambda source: source.n_bytes)
    needed, available = 3 * largest.n_bytes, available_bytes()  # read, made, and a part of it to write
    if available is not None and needed > available:
        raise DoesNotFit(
            f"converting takes {size(needed)} of memory for the tensor {largest.name!r}, and "
            f"{size(available)} are available; use a machine with more"
        )


def _format(args: argparse.Namespace) -> Format:
    """The format asked for, once the options are known to go together."""
    is_file = args.destination.lower().endswith(".gguf")
    form: Format | None = args.to or ("gguf" if is_file else None)
    if form is None:
        raise BadInput(f"say what {args.destination} is to be: --to {', '.join(_FORMATS)}")
    if is_file != (form == "gguf"):
        raise BadInput(f"a GGUF file ends in .gguf and a folder does not, got {args.destination} --to {form}")
    for option, value, owner in (("--shards", args.shards, "meta"), ("--shard-size", args.shard_size, "hf")):
        if value is not None and form != owner:
            raise BadInput(f"{option} is for --to {owner}, and DST is to be {form}; leave it out")
    if args.shard_size is not None and not args.shard_size > 0:
        raise BadValue(f"--shard-size must be above 0 GB, got {args.shard_size:g}")
    return form


def texts_of(checkpoint: Checkpoint, form: Format) -> Texts:
    """The tokenizer and template of the source, as the target will have them."""
    from puna.text import files
    from puna.weights.targets import Texts

    folder, context = checkpoint.folder, checkpoint.config.context_length
    metadata: dict[str, Any] = {}
    if folder is None:
        metadata = {k: v for k, v in checkpoint.metadata.items() if k.startswith("tokenizer.")}
    elif files.has_tokenizer(folder):
        rows = checkpoint.config.vocab_size + checkpoint.config.n_image_embeddings
        metadata = files.read_folder(folder, rows)
    keys = {name: value for name, value in files.hf_keys(metadata).items() if value is not None}
    if form == "gguf":
        return Texts(metadata, {}, {})
    pictures = files.stored_files(folder, files.PICTURE_FILES) if folder else {}
    if form == "meta":
        made = files.meta_files(metadata, context, folder) if metadata else {}
        return Texts(metadata, {**made, **pictures}, {})
    is_hf = folder is not None and (folder / "config.json").is_file()
    small = files.stored_files(folder) if folder and is_hf else files.hf_files(metadata, context)
    return Texts(metadata, {**small, **pictures}, keys, files.image_keys(metadata))


def _print(report: dict[str, Any]) -> None:
    files = report["files"]
    print_facts(
        {
            "written": report["path"],
            "format": report["format"],
            "size": size(report["n_bytes"]),
            "files": ", ".join(files[:4]) + (f" and {len(files) - 4} more" if len(files) > 4 else ""),
            "tensors": f"{report['n_tensors']:,}"
            + (f", {report['resumed']:,} by an earlier run" if report["resumed"] else ""),
            "verified": "read back and compared" if report["verified"] else "no",
            "compared": agreement_line(report),
            "note": "; ".join(report["notes"]) or None,
        }
    )
