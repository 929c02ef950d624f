"""llama.cpp under measurement: a script for a Python that has llama-cpp-python, and need not have Puna.

Reads one JSON command a line from stdin, answers each with one JSON line on stdout; puna/bench/peer.py is the
other end. Uses llama.cpp's own interface: llama_decode over batches, ids in, the argmax of the logits out.
The attention is whichever of flash and plain was faster the first time a job ran.

Shapes: V vocabulary.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

UBATCH = 512  # tokens that llama.cpp multiplies at a time, its default
FILE_TYPES = {"q8_0": 7, "q4_0": 2, "q4_1": 3, "q4_k_m": 15}  # LLAMA_FTYPE_MOSTLY_*


class Context:
    """A cache for `n_seq` sequences of `length` tokens, with one kind of attention."""

    def __init__(self, lib: Any, model: Any, threads: int, length: int, n_seq: int, flash: bool) -> None:
        params = lib.llama_context_default_params()
        params.n_ctx = n_seq * (-(-length // 256) * 256)
        params.n_seq_max = n_seq
        params.n_batch = params.n_ubatch = UBATCH
        params.n_threads = params.n_threads_batch = threads
        kinds = (lib.LLAMA_FLASH_ATTN_TYPE_DISABLED, lib.LLAMA_FLASH_ATTN_TYPE_ENABLED)
        params.flash_attn_type = kinds[flash]
        self._lib, self._ctx = lib, lib.llama_init_from_model(model, params)
        if not self._ctx:
            raise SystemExit("llama.cpp could not make a context")
        self._memory = lib.llama_get_memory(self._ctx)
        self._batch = lib.llama_batch_init(UBATCH, 0, 1)
        self.n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))

    def keep(self, n: int) -> None:
        """Forget all but the first n positions of every sequence."""
        self._lib.llama_memory_seq_rm(self._memory, -1, n, -1)

    def n_held(self) -> int:
        held: int = self._lib.llama_memory_seq_pos_max(self._memory, 0) + 1
        return held

    def feed(self, rows: list[tuple[int, int, int]], wanted: set[int]) -> list[int]:
        """Run rows of (token, position, sequence); the best next token after each row of `wanted`."""
        best = []
        for start in range(0, len(rows), UBATCH):
            best += self._decode(rows[start : start + UBATCH], {i - start for i in wanted})
        return best

    def _decode(self, rows: list[tuple[int, int, int]], wanted: set[int]) -> list[int]:
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, seq) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = seq, i in wanted
        if self._lib.llama_decode(self._ctx, batch) != 0:
            raise SystemExit("llama_decode failed")
        return [self._argmax(i) for i in range(len(rows)) if i in wanted]

    def _argmax(self, row: int) -> int:
        import numpy as np

        logits_V = np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._ctx, row), (self.n_vocab,))
        return int(logits_V.argmax())


class Peer:
    """One loaded model, and a pair of contexts (plain, flash) for each size of job."""

    def __init__(self, lib: Any, path: str, threads: int) -> None:
        begin = time.perf_counter()
        self._lib, self._threads = lib, threads
        self._model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp could not load {path}")
        self.load_seconds = time.perf_counter() - begin
        self._contexts: dict[tuple[int, int, bool], Context] = {}
        self._flash: dict[str, bool] = {}  # by job, once both have been tried

    def run(self, job: dict[str, Any]) -> float:
        key = json.dumps(job)
        if key not in self._flash:
            seconds = {flash: self._run(job, flash) for flash in (False, True)}
            self._flash[key] = min(seconds, key=seconds.__getitem__)
            return seconds[self._flash[key]]
        return self._run(job, self._flash[key])

    def _run(self, job: dict[str, Any], flash: bool) -> float:
        n, output, streams = job["prompt"], job["output"], job["streams"]
        ctx = self._context(n, max(output + 1, 128), streams, flash)
        if job["kind"] == "decode":
            return self._decode(ctx, n, output, streams)
        ctx.keep(0)
        begin = time.perf_counter()
        best = self._prefill(ctx, n, streams)
        self._generate(ctx, best, n, output - 1)
        return time.perf_counter() - begin

    def _decode(self, ctx: Context, n: int, output: int, streams: int) -> float:
        if ctx.n_held() < n:
            ctx.keep(0)
            self._prefill(ctx, n, streams)
        ctx.keep(n)
        begin = time.perf_counter()
        self._generate(ctx, [100 + i for i in range(streams)], n, output)
        return time.perf_counter() - begin

    def _prefill(self, ctx: Context, n: int, streams: int) -> list[int]:
        rows = [((i * 7919 + s * 104729 + 13) % ctx.n_vocab, i, s) for s in range(streams) for i in range(n)]
        return ctx.feed(rows, {(s + 1) * n - 1 for s in range(streams)})

    def _generate(self, ctx: Context, tokens: list[int], start: int, n_steps: int) -> None:
        for position in range(start, start + n_steps):
            rows = [(token, position, s) for s, token in enumerate(tokens)]
            tokens = ctx.feed(rows, set(range(len(rows))))

    def _context(self, prompt: int, room: int, streams: int, flash: bool) -> Context:
        """Prefill and decode of the same prompt share one, so that its prefix is computed once a round."""
        key = (prompt, streams, flash)
        if key not in self._contexts:
            self._contexts[key] = Context(
                self._lib, self._model, self._threads, prompt + room, streams, flash
            )
        return self._contexts[key]


def requantize(lib: Any, source: str, quant: str, folder: str, threads: int) -> str:
    """The same model in another format, by llama.cpp's own quantizer -> its path."""
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = FILE_TYPES[quant], threads, True
    target = str(Path(folder) / f"{quant}.gguf")
    if lib.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)) != 0:
        raise SystemExit(f"llama.cpp could not quantize the model to {quant}")
    return target


def answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def main() -> None:
    hello = json.loads(sys.stdin.readline())
    try:
        lib = import_module("llama_cpp")
    except ImportError:
        answer({"missing": "llama-cpp-python==0.3.36"})
        raise SystemExit(1) from None
    silence = lib.llama_log_callback(lambda level, text, data: None)  # to be kept as long as it may be called
    lib.llama_log_set(silence, None)
    lib.llama_backend_init()
    path, threads = hello["model"], hello["threads"]
    if hello["quant"]:
        path = requantize(lib, path, hello["quant"], hello["folder"], threads)
    peer = Peer(lib, path, threads)
    answer({"version": metadata.version("llama-cpp-python"), "load_s": peer.load_seconds})
    for line in sys.stdin:
        answer({"seconds": peer.run(json.loads(line))})


if __name__ == "__main__":
    main()
