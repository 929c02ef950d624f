"""The process of one rank: `python -m puna.runtime.torch_worker`, started by torch_parallel.py.

Reads pickles from stdin: first its Part, then of every step the method and its batch. Writes JSON lines to
stdout: `{"ready": true}` once its part is loaded, or `{"error": …}` before it ends. The end of stdin is its
own.
"""

from __future__ import annotations

import json
import pickle
import sys

from torch._C._distributed_c10d import TCPStore

from puna.core import PunaError
from puna.runtime.torch import TorchExecutor, choose_device
from puna.runtime.torch_parallel import Group, Part
from puna.weights.load import open_checkpoint


def answer(**value: object) -> None:
    print(json.dumps(value), flush=True)


def run(part: Part) -> None:
    options = dict(part.options)
    store = TCPStore("127.0.0.1", part.port, is_master=False)
    group = Group(part.rank, part.size, store, choose_device(options["device"]))
    with open_checkpoint(part.model) as checkpoint:
        executor = TorchExecutor(part.config, checkpoint.tensors, part.rope, ranks=group, **options)
    answer(ready=True)
    group.join()
    while True:
        try:
            method, batch = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        getattr(executor, method)(batch)


def main() -> int:
    try:
        run(pickle.load(sys.stdin.buffer))
    except (PunaError, RuntimeError, OSError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        answer(error=f"failed: {lines[0]}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
