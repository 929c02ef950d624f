"""Puna's own engine under measurement: the real loop, Engine.step with greedy sampling.

Speculation is off, so that every token costs a step, and no prompt of a timed prefill is in the prefix cache.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from puna.bench.jobs import Job
from puna.core import Request, SamplingParams, StepResult
from puna.engine.config import EngineConfig
from puna.engine.engine import Engine
from puna.llm.backend import NATIVE, Backend, make_executor
from puna.llm.config import LLMConfig
from puna.model.rope import rope_table
from puna.weights.load import open_checkpoint


class Ours:
    """One loaded model. `cache_tokens` positions of keys and values; close() frees it."""

    def __init__(
        self,
        model: Path,
        cache_tokens: int,
        threads: int,
        cache_type: str,
        target: str,
        backend: Backend = NATIVE,
    ) -> None:
        begin = time.perf_counter()
        with open_checkpoint(model) as checkpoint:
            cfg = checkpoint.config
            self._vocab_size = cfg.vocab_size
            config = EngineConfig(max_guesses=0)
            executor = make_executor(
                backend,
                cfg,
                checkpoint,
                rope_table(cfg),
                LLMConfig(cache_type=cache_type, threads=threads),  # type: ignore[arg-type]
                cache_tokens,
                config,
                progress=lambda n_bytes: None,
                target=target,
            )
        self._engine = Engine(executor, config)
        self.load_seconds = time.perf_counter() - begin
        self._rng = np.random.default_rng(0)

    def run(self, job: Job) -> float:
        """Seconds of the timed part of `job`."""
        requests = [self._request(job, i) for i in range(job.streams)]
        begin = time.perf_counter()
        for request in requests:
            self._engine.submit(request)
        if job.kind == "decode":
            self._until_all_have_begun(job.streams)
            begin = time.perf_counter()
        while self._engine.is_busy:
            self._engine.step()
        return time.perf_counter() - begin

    def _until_all_have_begun(self, n: int) -> None:
        """Steps until one gives every stream its first token: the prompts of a batch are short."""
        results: Sequence[StepResult] = ()
        while sum(len(result.token_ids) for result in results) < n:
            assert not any(result.finish_reason for result in results), "the streams began in different steps"
            results = self._engine.step()

    def _request(self, job: Job, stream: int) -> Request:
        """Prompts of a decode are the same each time, so that the prefix cache has them; others are new."""
        rng = np.random.default_rng(1 + stream) if job.kind == "decode" else self._rng
        prompt = array("i", rng.integers(0, self._vocab_size, job.prompt).tolist())
        output = job.output + (job.kind == "decode")  # the first token comes of the prompt
        return Request(prompt, SamplingParams(temperature=0.0, max_tokens=output, ignore_end=True))

    def close(self) -> None:
        self._engine.close()
