"""The same requests alone and in a crowd: identical text and log-probabilities."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from serving.figure import Figure
from serving.process import Served, served

_REQUESTS = 200
_CROWD = 32
_WORDS = [
    "why",
    "how",
    "where",
    "when",
    "does",
    "the",
    "grey",
    "llama",
    "walk",
    "over",
    "cold",
    "stones",
    "beside",
    "a",
    "lake",
    "and",
    "sing",
    "of",
    "rain",
]


def same_in_a_crowd(model: str, home: Path, n: int = _REQUESTS) -> list[Figure]:
    """Requests of all kinds (greedy and sampled, short and long, with a common beginning or none, tools, a
    schema, several choices), one after the other, then 32 at a time in another order."""
    with served(model, home) as server:
        bodies = [_body(server.model, seed) for seed in range(n)]
        alone = [_ask(server, body) for body in bodies]
        order = list(range(n))
        random.Random(0).shuffle(order)
        with ThreadPoolExecutor(_CROWD) as pool:
            crowd = dict(zip(order, pool.map(lambda i: _ask(server, bodies[i]), order), strict=True))
    equal = sum(crowd[i] == alone[i] for i in range(n))
    n_tokens = sum(len(choice["logprobs"]["content"]) for answer in alone for choice in answer)
    return [
        Figure(f"of {n} requests ({n_tokens:,} tokens), the same in a crowd of 32", equal, n, ""),
    ]


def _body(model: str, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    shared = "You answer in the manner of a herder of the high Andes. " * (8 if seed % 3 else 0)
    words = " ".join(rng.choice(_WORDS) for _ in range(rng.randrange(4, 200)))
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": f"{shared}{words}?"}],
        "max_tokens": rng.randrange(4, 48),
        "temperature": rng.choice([0, 0.7, 1.3]),
        "seed": seed,
        "logprobs": True,
        "top_logprobs": 3,
        "n": 2 if seed % 11 == 0 else 1,
    }
    if seed % 5 == 0:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "herd", "schema": _SCHEMA}}
    return body


_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 30}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def _ask(server: Served, body: dict[str, Any]) -> Any:
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=600)
    answer.raise_for_status()
    return [
        {name: choice[name] for name in ("message", "logprobs", "finish_reason")}
        | {"message": choice["message"]["content"]}
        for choice in answer.json()["choices"]
    ]
