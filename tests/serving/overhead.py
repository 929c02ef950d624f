"""What HTTP costs: one stream beside the Python API, and the memory of a thousand streams that wait."""

from __future__ import annotations

import asyncio
import json
import statistics
from http.client import HTTPConnection
from pathlib import Path
from time import perf_counter

import httpx
from serving.figure import Figure
from serving.process import Served, served

from puna import LLM

_TOKENS = 256
_ROUNDS = 21
_STREAMS = 1000
_ASKED = "Tell me about the high grassland where llamas live."


def one_stream(model: str, home: Path) -> Figure:
    """Tokens per second of one stream through HTTP as a share of the Python API's, round by round.

    The time counts from the first token to the last, in the process that reads it. Both load the model with
    the same threads; while one is measured the other sleeps.
    """
    shares = []
    llm = LLM(model)
    try:
        with served(model, home) as server:
            _http_rate(server), _python_rate(llm)
            for _ in range(_ROUNDS):
                python = _python_rate(llm)
                shares.append(_http_rate(server) / python)
    finally:
        llm.close()
    return Figure("one stream through HTTP, share of the Python API", statistics.median(shares), 0.93, "")


def _python_rate(llm: LLM) -> float:
    messages = [{"role": "user", "content": _ASKED}]
    times = [perf_counter() for _ in llm.stream(messages, max_tokens=_TOKENS, temperature=0, ignore_end=True)]
    return (len(times) - 1) / (times[-1] - times[0])


def _http_rate(server: Served) -> float:
    """By the standard library's client, whose lines are kept unread until the stream has ended: on a machine
    of two cores a client that parses while it reads takes time from the threads that it measures."""
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": _ASKED}],
        "max_tokens": _TOKENS,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
    }
    connection = HTTPConnection(server.url.removeprefix("http://"), timeout=600)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    read = [(perf_counter(), line) for line in connection.getresponse() if line.startswith(b"data: {")]
    connection.close()
    times = [at for at, line in read if json.loads(line[6:])["choices"][0]["delta"].get("content")]
    return (len(times) - 1) / (times[-1] - times[0])


def idle_streams(model: str, home: Path) -> list[Figure]:
    """Memory that a thousand open streams add to a server whose cache has been filled before; all are
    answered in the end."""
    with served(model, home, "--max-requests", str(_STREAMS + 8)) as server:
        asyncio.run(_hold(server))  # fills the cache that is the model's own
        before = server.rss_mb
        most, n_whole = asyncio.run(_hold(server))
        return [
            Figure("memory of 1,000 open streams above the model", most - before, 300, "MB", is_least=False),
            Figure("of 1,000 open streams, answered whole", n_whole, _STREAMS, ""),
        ]


async def _hold(server: Served) -> tuple[float, int]:
    """The most memory while all streams are open, and how many ended as they should."""
    model, most = server.model, 0.0
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=900) as client:

        async def ask(i: int) -> bool:
            body = {
                "model": model,
                "messages": [{"role": "user", "content": f"{i}: {_ASKED}"}],
                "max_tokens": 16,
                "stream": True,
                "ignore_eos": True,
            }
            async with client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
                text = "".join([part async for part in answer.aiter_text()])
            return text.rstrip().endswith("[DONE]") and '"finish_reason":"length"' in text

        tasks = [asyncio.create_task(ask(i)) for i in range(_STREAMS)]
        while any(not task.done() for task in tasks):
            most = max(most, server.rss_mb)
            await asyncio.sleep(0.1)
        return most, sum(task.result() for task in tasks)
