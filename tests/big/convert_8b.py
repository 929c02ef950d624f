"""Convert a checkpoint of Llama 3.1 8B's shape (16 GB of random weights), killed once and resumed.

    PYTHONPATH=. python tests/big/convert_8b.py [--folder DIR] [--to gguf|hf|meta] [--catalog llama-3.1-8b]

Needs 33 GB of disk and some minutes; everything it writes is deleted at the end. Not part of the test suite.
Prints one JSON object; exit code 1 unless both runs stayed below 3 GB and the output was verified.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from puna.model import catalog
from puna.weights.convert import convert
from puna.weights.synthetic import synthetic_checkpoint
from puna.weights.targets import Texts, plan

LIMIT = 3e9  # bytes of peak memory


def run(argv: list[str], kill_when: Path | None) -> dict[str, Any]:
    """`puna convert`, killed (SIGKILL) when the journal says that half is done; peak memory in bytes."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "puna", "convert", *argv], stdout=subprocess.PIPE)
    while kill_when is not None and process.poll() is None:
        if kill_when.exists() and json.loads(kill_when.read_text())["done"] > 145:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.05)
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "peak_bytes": usage.ru_maxrss * 1024,
        "seconds": round(time.perf_counter() - began, 1),
        "report": json.loads(out) if out else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="see the top of this file")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    parser.add_argument("--to", default="gguf", choices=("gguf", "hf", "meta"))
    parser.add_argument("--catalog", default="llama-3.1-8b")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        source = synthetic_checkpoint(catalog.find(args.catalog).config, "bf16")
        convert(plan(source, "hf", Texts({}, {}, {})), folder / "hf", verify=False)
        destination = folder / ("out.gguf" if args.to == "gguf" else "out")
        argv = [str(folder / "hf"), str(destination), "--to", args.to, "--json"]
        killed = run(argv, Path(f"{destination}.partial") / "puna-convert.json")
        resumed = run(argv, None)
    finally:
        shutil.rmtree(folder)
    print(json.dumps({"killed": killed, "resumed": resumed}, indent=1))
    good = killed["status"] == -signal.SIGKILL and resumed["status"] == 0 and resumed["report"]["verified"]
    peaks = (killed["peak_bytes"], resumed["peak_bytes"])
    return 0 if good and resumed["report"]["resumed"] > 0 and max(peaks) < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
