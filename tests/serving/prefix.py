"""What the prefix cache saves: the time to the first token of a second question about the same long text."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
from serving.figure import Figure
from serving.process import Served, served

from puna import LLM

_SHARED = 3000  # tokens
_ROUNDS = 5


def prefix_cache(model: str, home: Path) -> list[Figure]:
    """A prompt of 3,000 tokens and a short question after it: to a server that has never seen it, and to one
    that has answered another question about it."""
    ratios, same = [], True
    with LLM(model) as llm, served(model, home) as server:
        for seed in range(_ROUNDS):
            text = _text(server, seed)
            _ask(server, text, "What was the first of these words?")
            warm_s, warm = _ask(server, text, "What was the last of them?")
            other = _text(server, 1000 + seed)
            cold_s, _ = _ask(server, other, "What was the last of them?")
            ratios.append(cold_s / warm_s)
            same &= warm == _alone(llm, text, "What was the last of them?")
        return [
            Figure(
                "first token of a 3,000-token prefix seen before, sooner", statistics.median(ratios), 10, "x"
            ),
            Figure("answers from the cache with the bits of those without", float(same), 1, ""),
        ]


def _text(server: Served, seed: int) -> str:
    """Words that make up 3,000 tokens, other ones for each seed from the first word on."""
    words = [
        "llama",
        "alpaca",
        "puna",
        "grass",
        "stone",
        "river",
        "cloud",
        "snow",
        "lake",
        "wind",
        "bird",
        "fox",
        "path",
        "hill",
        "star",
        "night",
    ]
    rng = random.Random(seed)
    made: list[str] = []
    n = 0
    while n < _SHARED:
        made += [f"{rng.choice(words)} {rng.randrange(1000)}" for _ in range(max(1, (_SHARED - n) // 4))]
        n = len(httpx.post(f"{server.url}/tokenize", json={"prompt": " ".join(made)}).json()["tokens"])
    return " ".join(made)


def _body(server: Served, text: str, question: str) -> dict[str, Any]:
    return {
        "model": server.model,
        "messages": [{"role": "user", "content": f"{text}\n\n{question}"}],
        "max_tokens": 8,
        "temperature": 0,
        "logprobs": True,
    }


def _ask(server: Served, text: str, question: str) -> tuple[float, Any]:
    """Seconds to the first token, and the answer's tokens with their log-probabilities."""
    body = {**_body(server, text, question), "stream": True}
    begin, first, tokens = perf_counter(), 0.0, []
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=600) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            logprobs = json.loads(line[6:])["choices"][0]["logprobs"]
            if logprobs and logprobs["content"]:
                first = first or perf_counter() - begin
                tokens += [(entry["token"], entry["logprob"]) for entry in logprobs["content"]]
    return first, tokens


def _alone(llm: LLM, text: str, question: str) -> Any:
    """The answer of a process that has nothing of the prompt in its cache."""
    messages = [{"role": "user", "content": f"{text}\n\n{question}"}]
    answer = llm.chat(messages, max_tokens=8, temperature=0, logprobs=0)
    assert answer.n_cached < 64, "only the template's own beginning may have been there"
    spelled = (
        llm.tokenizer.token_bytes(entry.token_id).decode("utf-8", "replace") for entry in answer.logprobs
    )
    return [(token, entry.logprob) for token, entry in zip(spelled, answer.logprobs, strict=True)]
