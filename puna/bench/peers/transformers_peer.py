"""transformers under measurement: a script for a Python that has it and torch, and need not have Puna.

Speaks the protocol of puna/bench/peer.py: JSON lines, first the model, then jobs. Timed are calls of the
model with its own cache and its attention by SDPA, the argmax of the last logits and nothing else: generate()
itself does more for each token.

Shapes: B streams, N tokens of each.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module, metadata
from typing import Any


class Peer:
    def __init__(self, torch: Any, transformers: Any, hello: dict[str, Any]) -> None:
        begin = time.perf_counter()
        torch.set_num_threads(hello["threads"])
        dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[hello["dtype"]]
        self._torch, self._device = torch, hello["device"]
        model = transformers.AutoModelForCausalLM.from_pretrained(
            hello["model"], dtype=dtype, attn_implementation="sdpa"
        )
        self._model = model.to(self._device).eval()
        self._random = torch.Generator().manual_seed(0)
        self.load_seconds = time.perf_counter() - begin

    def run(self, job: dict[str, Any]) -> float:
        """Seconds of the timed part of a job (jobs.Job)."""
        n_vocab = self._model.config.get_text_config().vocab_size
        shape = (job["streams"], job["prompt"])
        ids_BN = self._torch.randint(0, n_vocab, shape, generator=self._random).to(self._device)
        begin = time.perf_counter()
        with self._torch.inference_mode():
            best_B1, cache = self._step(ids_BN, None)
            best_B1.tolist()
            n_steps = job["output"] - 1
            if job["kind"] == "decode":
                begin, n_steps = time.perf_counter(), job["output"]
            for _ in range(n_steps):
                best_B1, cache = self._step(best_B1, cache)
                best_B1.tolist()  # as an engine, which has to know whether an answer ends
        return time.perf_counter() - begin

    def _step(self, ids_BN: Any, cache: Any) -> tuple[Any, Any]:
        out = self._model(ids_BN, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values


def answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def main() -> None:
    hello = json.loads(sys.stdin.readline())
    try:
        torch, transformers = import_module("torch"), import_module("transformers")
    except ImportError:
        answer({"missing": "torch transformers"})
        raise SystemExit(1) from None
    peer = Peer(torch, transformers, hello)
    answer({"version": metadata.version("transformers"), "load_s": peer.load_seconds})
    for line in sys.stdin:
        answer({"seconds": peer.run(json.loads(line))})


if __name__ == "__main__":
    main()
