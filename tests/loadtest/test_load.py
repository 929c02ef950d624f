"""What is sent, and when: statistics of arrivals and lengths, the same load for the same seed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from text.vocabularies import smollm2

from puna.core import BadFile, BadInput, BadValue
from puna.loadtest import LengthMix, Load, Tenant, read_trace
from puna.loadtest.load import arrivals, plan, request
from puna.loadtest.words import WORDS, content
from puna.text.tokenizer import Tokenizer

LOAD = Load(model="m", rate=5.0, requests=50)


def gaps_of(load: Load, n: int = 20_000) -> np.ndarray[Any, Any]:
    return np.diff(list(islice(arrivals(load), n)))


@pytest.mark.parametrize(
    ("kind", "burstiness", "cv"),
    [
        ("poisson", 2.0, 1.0),
        ("constant", 2.0, 0.0),
        ("gamma", 1.0, 1.0),
        ("gamma", 2.5, 2.5),
        ("gamma", 0.3, 0.3),
    ],
)
def test_arrivals_have_their_rate_and_their_spread(kind: Any, burstiness: float, cv: float) -> None:
    gaps = gaps_of(replace(LOAD, arrivals=kind, burstiness=burstiness))
    # five standard errors of the mean of n gaps, each with standard deviation cv / rate
    assert gaps.mean() == pytest.approx(0.2, abs=5 * 0.2 * cv / math.sqrt(len(gaps)) + 1e-12)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1, abs=1e-9)


def test_poisson_gaps_are_exponential() -> None:
    """By the largest distance from their distribution (Kolmogorov-Smirnov, one in a thousand)."""
    gaps = np.sort(gaps_of(LOAD))
    exact = 1 - np.exp(-5 * gaps)
    distance = np.max(np.abs(exact - np.arange(1, len(gaps) + 1) / len(gaps)))
    assert distance < 1.95 / math.sqrt(len(gaps))


def test_lengths_are_like_sharegpt() -> None:
    random = Random(1)
    drawn = np.array([LengthMix().draw(random) for _ in range(20_000)])
    prompts, outputs = drawn.T
    # the papers' means, less a little that the limits cut off; answers by the error of 20,000 draws
    assert 145 < prompts.mean() < 161.31
    assert outputs.mean() == pytest.approx(337.99, rel=0.02)
    # the papers' P90 / median of answers is 834 / 415
    assert np.percentile(outputs, 90) / np.median(outputs) == pytest.approx(834 / 415, rel=0.05)
    assert prompts.min() >= 4
    assert prompts.max() <= 1024
    assert drawn.sum(axis=1).max() <= 2048


def test_fixed_lengths() -> None:
    random = Random(1)
    assert LengthMix(10, 20).draw(random) == (10, 20)
    assert LengthMix(10).draw(random)[0] == 10
    assert LengthMix(None, 20).draw(random)[1] == 20
    assert "ShareGPT" in LengthMix(None, 20).description
    assert LengthMix(10, 20).description == "prompts of 10 and answers of 20 tokens"


def test_one_seed_is_one_load() -> None:
    once, again = list(plan(LOAD)), list(plan(LOAD))
    assert once == again
    assert len(once) == 50
    assert list(plan(replace(LOAD, seed=1))) != once
    closed = list(plan(replace(LOAD, rate=None, concurrency=4)))
    assert [p.body for p in closed] == [p.body for p in once]
    assert all(p.at is None for p in closed)
    assert list(plan(replace(LOAD, requests=20))) == once[:20]


def test_a_duration_ends_the_arrivals() -> None:
    timed = list(plan(replace(LOAD, requests=None, duration=10.0)))
    assert all(p.at is not None and p.at < 10 for p in timed)
    assert 25 < len(timed) < 80


def test_requests_say_what_openai_reads() -> None:
    body = request(replace(LOAD, ignore_end=True, mix=LengthMix(12, 34), temperature=0.5), 3).body
    assert body["messages"][0]["role"] == "user"
    assert len(body["messages"][0]["content"].split()) == 12
    del body["messages"], body["seed"]
    assert body == {
        "model": "m",
        "max_tokens": 34,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    assert isinstance(request(replace(LOAD, endpoint="completions"), 3).body["prompt"], str)


def prompts_of(load: Load) -> list[list[str]]:
    return [p.body["prompt"].split() for p in plan(load)]


def test_prompts_share_the_beginnings_that_they_should() -> None:
    load = replace(
        LOAD, endpoint="completions", prefix_share=0.5, prefixes=3, mix=LengthMix(200), requests=60
    )
    prompts = prompts_of(load)
    assert all(len(prompt) == 200 for prompt in prompts)
    assert len({tuple(prompt[:100]) for prompt in prompts}) == 3
    assert len({tuple(prompt[100:120]) for prompt in prompts}) == 60
    alone = prompts_of(replace(load, prefix_share=0.0))
    assert len({tuple(prompt[:8]) for prompt in alone}) == 60
    other = prompts_of(replace(load, seed=1))
    assert not {tuple(p[:100]) for p in other} & {tuple(p[:100]) for p in prompts}


def test_warming_up_warms_no_request() -> None:
    warm = {json.dumps(request(LOAD, -1 - index).body) for index in range(20)}
    assert not warm & {json.dumps(p.body) for p in plan(LOAD)}


def test_tenants_have_their_share() -> None:
    tenants = (Tenant("a", "ka", 3.0), Tenant("b", "kb", 1.0))
    names = [p.tenant.name for p in plan(replace(LOAD, requests=2000, tenants=tenants))]
    assert names.count("a") / 2000 == pytest.approx(0.75, abs=5 * math.sqrt(0.75 * 0.25 / 2000))
    assert "ka" not in repr(tenants)


def test_words_are_a_token_each() -> None:
    """In SmolLM2's vocabulary, whose ids of it are checked against its own tokenizer."""
    tokenizer = Tokenizer.from_gguf(smollm2())
    for n in (1, 50, 1000):
        text = content(n, Random(n), 0, "", ())
        assert len(tokenizer.encode(text)) == pytest.approx(n, abs=1)
    assert len(set(WORDS)) == len(WORDS) > 100


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"requests": None}, "needs an end"),
        ({"rate": None}, "expected one of --rate, --concurrency"),
        ({"concurrency": 3}, "expected one of --rate, --concurrency"),
        ({"rate": math.nan}, "--rate must be from"),
        ({"rate": math.inf}, "--rate must be from"),
        ({"rate": 1e5}, "--rate must be from 0.001 to 10000, got 100000"),
        ({"requests": 10**6}, "--requests must be from 1 to 100000"),
        ({"requests": None, "duration": 1e6}, "--duration must be"),
        ({"requests": None, "duration": 80_000.0, "rate": 100.0}, "must be at most 100,000 requests"),
        ({"prefix_share": 1.5}, "--prefix-share must be"),
        ({"tenants": (Tenant("a"), Tenant("a"))}, "names of keys must differ"),
        ({"tenants": (Tenant("a", weight=0.0),)}, "must be above 0"),
        ({"arrivals": "trace", "rate": None}, "expected a time in every line"),
    ],
)
def test_loads_without_bounds_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        replace(LOAD, **change)


def test_lengths_have_bounds() -> None:
    with pytest.raises(BadValue, match="--output-tokens must be from 1"):
        LengthMix(output_tokens=0)


def trace_of(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines), encoding="utf-8")
    return path


def test_a_trace_is_sent_as_it_is(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    path = trace_of(
        tmp_path,
        {"at": 4.5, "prompt": "late", "output_tokens": 3},
        {"at": 2, "messages": messages, "max_tokens": 4},
        "",
        {"at": 3, "prompt_tokens": 9, "output_tokens": 5},
    )
    trace = read_trace(path)
    first, second, third = plan(Load(model="m", arrivals="trace", requests=3, trace=trace))
    assert [first.at, second.at, third.at] == [0, 1, 2.5]
    assert first.body["messages"] == messages
    assert len(second.body["messages"][0]["content"].split()) == 9
    assert third.body["messages"][0]["content"] == "late"
    assert [p.body["max_tokens"] for p in (first, second, third)] == [4, 5, 3]
    with pytest.raises(BadValue, match="at most the 3 of the trace, got 4"):
        Load(model="m", rate=1.0, requests=4, trace=trace)


def test_blocks_of_a_trace_are_equal_where_their_ids_are(tmp_path: Path) -> None:
    path = trace_of(
        tmp_path,
        {"timestamp": 1000, "input_length": 1100, "output_length": 5, "hash_ids": [4, 9, 1]},
        {"timestamp": 3000, "input_length": 1100, "output_length": 5, "hash_ids": [4, 9, 2]},
    )
    load = Load(model="m", endpoint="completions", arrivals="trace", requests=2, trace=read_trace(path))
    one, two = (p.body["prompt"].split() for p in plan(load))
    assert [p.at for p in plan(load)] == [0, 2]
    assert len(one) == len(two) == 1100
    assert one[:1024] == two[:1024]
    assert one[1024:] != two[1024:]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: expected an object in JSON"),
        ("[" * 100_000, "line 1: expected an object in JSON"),
        ([1], "expected an object, found"),
        ({"prompt": "x"}, "expected output_tokens"),
        ({"output_tokens": 5}, "exactly one of prompt"),
        ({"prompt": "x", "prompt_tokens": 3, "output_tokens": 5}, "exactly one of prompt"),
        ({"prompt": 3, "output_tokens": 5}, "prompt must be text"),
        ({"messages": "x", "output_tokens": 5}, "messages must be a list"),
        ({"prompt": "x", "output_tokens": True}, "output_tokens must be a whole number"),
        ({"prompt": "x", "output_tokens": 5, "max_tokens": 5}, "found both"),
        ({"promt": "x", "output_tokens": 5}, "unknown key 'promt'; did you mean 'prompt'"),
        ({"prompt": "x", "output_tokens": 5, "at": -1}, "at must be a number"),
        ({"prompt_tokens": 3, "output_tokens": 5, "hash_ids": ["x"]}, "hash_ids must be"),
        ("", "one request in JSON a line, found none"),
    ],
)
def test_a_bad_trace_is_said_with_its_line(tmp_path: Path, line: object, said: str) -> None:
    with pytest.raises(BadFile, match=said):
        read_trace(trace_of(tmp_path, line))


def test_messages_cannot_be_completions(tmp_path: Path) -> None:
    trace = read_trace(trace_of(tmp_path, {"messages": [], "output_tokens": 1}))
    with pytest.raises(BadInput, match="use chat"):
        list(plan(Load(model="m", endpoint="completions", rate=1.0, requests=1, trace=trace)))
