"""Fuzz all that reads a GGUF file: the reader, the configuration, the decoders, the packer, the kernels.

    PYTHONPATH=. python tests/fuzz/fuzz_gguf.py --n 20000 --seed 0

Tiny valid models of every tensor type are damaged, opened, loaded tensor by tensor, and run (fuzz_step.py). A
file may load or be refused with a BadInput; anything else is a finding: another exception, a dead or stuck
process, or memory far beyond the size of the file. Cases run in a worker process, so that a crash costs one
case (sanitize.sh runs it under a sanitizer). Findings are kept as files in --keep. Prints one JSON object;
exit code 1 if there was a finding. A case depends on the seed and its number only.
"""

from __future__ import annotations

import argparse
import json
import queue
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from puna.core import BadInput
from puna.model.config import ModelConfig
from puna.weights.blocks.formats import GGUF_FORMATS
from puna.weights.blocks.quant import dequantize, random_blocks
from puna.weights.blocks.tensor import RawTensor
from puna.weights.files.gguf import GgufFile
from puna.weights.files.values import Value, ValueType
from puna.weights.load import Checkpoint, open_checkpoint, write_checkpoint
from puna.weights.synthetic import synthetic_checkpoint

Run = Callable[[Checkpoint], str]  # uses a checkpoint that opened; returns the status of the case
STATUSES = ("opened", "ran", "not finite", "refused", "crashed", "hung", "leaked")
FINDINGS = ("crashed", "hung", "leaked")
STUCK_SECONDS = 60.0  # a case takes milliseconds, on a busy machine under a sanitizer a second

# What opening may allocate beyond the size of the file: the tables as Python objects, and working space.
ALLOWED_BYTES = 1 << 20

# Small everywhere but in the row length, which whole blocks of 256 need, and the width of a head.
CONFIG = ModelConfig(
    dim=256,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    head_dim=32,
    ffn_dim=32,
    vocab_size=8,
    norm_eps=1e-5,
    rope_theta=10000.0,
    context_length=64,
    tied=False,
)
TOKENIZER = {
    "tokenizer.ggml.model": Value.of(ValueType.STRING, "gpt2"),
    "tokenizer.ggml.pre": Value.of(ValueType.STRING, "smollm"),
    "tokenizer.ggml.tokens": Value.array(ValueType.STRING, [*"abcdefg", "é" * 200]),
    "tokenizer.ggml.token_type": Value.array(ValueType.INT32, [1] * 8),
    "tokenizer.ggml.scores": Value.array(ValueType.FLOAT32, [0.5] * 8),
    "tokenizer.ggml.merges": Value.array(ValueType.STRING, ["a b"] * 5),
    "tokenizer.ggml.add_bos_token": Value.of(ValueType.BOOL, True),
    "general.alignment": Value.of(ValueType.UINT32, 32),
}


@dataclass
class Base:
    """A valid file, and where the numbers of its tables are."""

    raw: bytes
    tables_end: int
    fields: list[tuple[int, int]] = field(default_factory=list)  # place, size in bytes


def make_bases(folder: Path) -> list[Base]:
    """One model per tensor type; matrices whose rows are too short for it stay F32."""
    checkpoint = synthetic_checkpoint(CONFIG, "f32")
    bases = []
    for kind, fmt in GGUF_FORMATS.items():
        tensors = {}
        for name, tensor in checkpoint.tensors.items():
            fits = len(tensor.shape) == 2 and tensor.shape[1] % fmt.block_len == 0
            stored_kind = kind if fits else "F32"
            make = partial(random_blocks, stored_kind, tensor.shape, np.random.default_rng(0))
            tensors[name] = RawTensor(name, stored_kind, tensor.shape, make)
        path = folder / "base.gguf"
        write_checkpoint(replace(checkpoint, tensors=tensors), path, TOKENIZER)
        bases.append(_located(path))
    return bases


def _located(path: Path) -> Base:
    raw = path.read_bytes()
    with GgufFile.open(path) as file:
        base = Base(raw, min(info.offset for info in file.tensors.values()))
        base.fields = [(4, 4), (8, 8), (16, 8)]
        for key in file.metadata:
            at = raw.index(struct.pack("<Q", len(key)) + key.encode())
            after = at + 8 + len(key)
            base.fields += [(at, 8), (after, 4), (after + 4, 4), (after + 4, 8), (after + 8, 8)]
        for info in file.tensors.values():
            at = raw.index(struct.pack("<Q", len(info.name)) + info.name.encode())
            after = at + 8 + len(info.name)
            lengths = [(after + 4 + 8 * i, 8) for i in range(len(info.shape))]
            end = after + 4 + 8 * len(info.shape)
            base.fields += [(at, 8), (after, 4), *lengths, (end, 4), (end + 4, 8)]
    return base


def mutate(base: Base, rng: np.random.Generator) -> bytes:
    """Mostly one damage of one kind or another, up to four."""
    raw = bytearray(base.raw)
    for _ in range(int(rng.choice([1, 1, 1, 1, 2, 3, 4]))):
        MUTATIONS[int(rng.integers(len(MUTATIONS)))](raw, base, rng)
    return bytes(raw)


def _interesting(raw: bytearray, rng: np.random.Generator) -> int:
    power = 1 << int(rng.integers(64))
    near = [
        0,
        1,
        2,
        3,
        power,
        power - 1,
        power + 1,
        len(raw),
        int(rng.integers(len(raw))),
        int(rng.integers(300)),
    ]
    return near[int(rng.integers(len(near)))] * (-1 if rng.random() < 0.1 else 1)


def _set_field(raw: bytearray, base: Base, rng: np.random.Generator) -> None:
    at, size = base.fields[int(rng.integers(len(base.fields)))]
    raw[at : at + size] = (_interesting(raw, rng) % (1 << 8 * size)).to_bytes(size, "little")


def _flip_bits(raw: bytearray, base: Base, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 9))):
        raw[int(rng.integers(min(base.tables_end, len(raw))))] ^= 1 << int(rng.integers(8))


def _truncate(raw: bytearray, base: Base, rng: np.random.Generator) -> None:
    del raw[int(rng.integers(1, len(raw) + 1)) :]
    raw.extend(bytes(max(0, 24 - len(raw))))


def _remove_or_repeat(raw: bytearray, base: Base, rng: np.random.Generator) -> None:
    start = int(rng.integers(min(base.tables_end, len(raw))))
    part = raw[start : start + int(rng.integers(1, 64))]
    if rng.random() < 0.5:
        del raw[start : start + len(part)]
        raw.extend(bytes(max(0, 24 - len(raw))))
    else:
        raw[start:start] = part


def _random_tensor_bytes(raw: bytearray, base: Base, rng: np.random.Generator) -> None:
    start = int(rng.integers(base.tables_end, len(base.raw)))
    size = min(int(rng.integers(1, 4096)), len(raw) - start)
    if size > 0:
        raw[start : start + size] = rng.bytes(size)


Mutation = Callable[[bytearray, Base, np.random.Generator], None]
# As often as they stand here. Few files open with damaged tables, so that most that do have damaged tensors.
MUTATIONS: Sequence[Mutation] = (
    *[_set_field] * 3,
    _flip_bits,
    _truncate,
    _remove_or_repeat,
    *[_random_tensor_bytes] * 5,
)


@dataclass
class Outcome:
    """What else happens is an exception."""

    status: str  # one of STATUSES: refused, leaked (allocated too much), opened, or what running it gave
    beyond_file: int  # bytes that opening allocated at its peak, less the size of the file
    message: str = ""


def run_case(raw: bytes, path: Path, run: Run | None) -> Outcome:
    """Open a file of these bytes, load all of it, and run it."""
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        outcome = _open_and_load(path, run)
    except BadInput as error:
        outcome = Outcome("refused", 0, str(error))
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    if outcome.status == "refused":
        outcome.beyond_file = peak - len(raw)
    if outcome.beyond_file > ALLOWED_BYTES:
        outcome.status = "leaked"
    return outcome


def _open_and_load(path: Path, run: Run | None) -> Outcome:
    with open_checkpoint(path) as checkpoint:
        for key in checkpoint.metadata:
            checkpoint.metadata[key]
        beyond_file = tracemalloc.get_traced_memory()[1] - path.stat().st_size
        for tensor in checkpoint.tensors.values():
            dequantize(tensor.data(), tensor.kind, tensor.shape)
            tensor.release()
        return Outcome(run(checkpoint) if run else "opened", beyond_file)


def work(args: argparse.Namespace) -> None:
    """The worker: a line of JSON per case on stdout, after the number of the case that begins."""
    if args.step:
        from fuzz_step import pack_and_step  # needs the native extension
    with tempfile.TemporaryDirectory() as folder:
        bases = make_bases(Path(folder))
        for case in range(args.start, args.n):
            rng = np.random.default_rng([args.seed, case])
            raw = mutate(bases[case % len(bases)], rng)
            run = partial(pack_and_step, rng=rng) if args.step else None
            print(json.dumps({"case": case}), flush=True)
            try:
                outcome = run_case(raw, Path(folder) / "case.gguf", run)
            except Exception:  # whatever it is, it is the finding
                outcome = Outcome("crashed", 0, traceback.format_exc())
            print(json.dumps({"done": case, **vars(outcome)}), flush=True)


@dataclass
class Report:
    counts: Counter[str] = field(default_factory=Counter)
    most_beyond_file: int = 0
    findings: list[dict[str, Any]] = field(default_factory=list)

    def add(self, case: int, status: str, beyond_file: int, message: str) -> None:
        self.counts[status] += 1
        self.most_beyond_file = max(self.most_beyond_file, beyond_file)
        if status in FINDINGS:
            self.findings.append({"case": case, "status": status, "message": message[-2000:]})


def supervise(args: argparse.Namespace) -> Report:
    """Run workers until all cases are done; one that dies or is stuck is replaced behind the guilty case."""
    report, start = Report(), 0
    while start < args.n:
        command = [sys.executable, __file__, "--worker", "--start", str(start)]
        command += ["--n", str(args.n), "--seed", str(args.seed), "--step" if args.step else "--no-step"]
        with tempfile.TemporaryFile("w+") as errors:
            worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            current, how = _follow(worker, report, start - 1)
            errors.seek(0)
            if current < start:
                sys.exit(f"the worker did not begin: {errors.read()}")
            if how:
                report.add(
                    current, how, 0, errors.read()[:2000]
                )  # a sanitizer's report begins with the place
        start = current + 1
    return report


def _follow(worker: subprocess.Popen[str], report: Report, current: int) -> tuple[int, str]:
    """Returns the last case, and "crashed" or "hung" if the worker ended in it."""
    lines: queue.Queue[str] = queue.Queue()
    assert worker.stdout is not None
    reader = threading.Thread(target=_pump, args=(worker.stdout, lines), daemon=True)
    reader.start()
    pending = True
    try:
        while line := lines.get(timeout=STUCK_SECONDS):
            record = json.loads(line)
            pending = "case" in record
            current = record.get("case", current)
            if not pending:
                report.add(record["done"], record["status"], record["beyond_file"], record["message"])
    except queue.Empty:
        worker.kill()
        worker.wait()
        return current, "hung"
    worker.wait()
    return current, "crashed" if pending else ""


def _pump(out: Any, lines: queue.Queue[str]) -> None:
    for line in out:
        lines.put(line)
    lines.put("")


def keep(report: Report, args: argparse.Namespace) -> None:
    """The files of the findings, to be looked at."""
    args.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        bases = make_bases(Path(folder))
    for finding in report.findings:
        case = finding["case"]
        raw = mutate(bases[case % len(bases)], np.random.default_rng([args.seed, case]))
        (args.keep / f"{args.seed}-{case}-{finding['status']}.gguf").write_bytes(raw)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--n", type=int, default=20000, help="number of cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--step", action=argparse.BooleanOptionalAction, default=True, help="run what opens")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-findings"), help="folder for the findings' files"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return 0
    report = supervise(args)
    if report.findings:
        keep(report, args)
    counts = {status: report.counts[status] for status in STATUSES}
    result = counts | {"most_bytes_beyond_file": report.most_beyond_file, "findings": report.findings[:20]}
    print(json.dumps(result, indent=1))
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
