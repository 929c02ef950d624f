"""SmolLM2 in Puna, in llama.cpp and in float32 on the dequantized weights: the same model, the same tokens.

Puna and llama.cpp both round activations to int8, at different places: each is about as far from float32 as
from the other, and no closer agreement between them is to be had than either has with the truth. What these
tests establish is kept for `make test` as tests/golden/smollm2.json.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from peers.engines import Asked, LlamaCpp, Logprobs, answers, float_oracle, ours, scorer

from puna.evals.perplexity import Perplexity, WindowConfig, perplexity
from puna.text.tokenizer import Tokenizer

pytestmark = pytest.mark.peers

WINDOWS = WindowConfig(window=512, stride=384)
ANSWER = 400  # tokens of each prompt and its answer: some 2,300 forced tokens in all
# A near-tie: in float32 the likeliest token leads the second by less than this many nats. Rounded activations
# move a log-probability by 0.08 (root mean square), so the difference of two by a standard deviation of 0.12;
# the worst of some thousands of near-tied places lies at 4 to 6 of those.
NEAR_TIE = 0.7


@pytest.fixture(scope="module")
def our_answer(smollm2: Path, threads: int) -> Asked:
    return ours(smollm2, threads=threads)


@pytest.fixture(scope="module")
def llama_cpp(smollm2: Path, threads: int) -> LlamaCpp:
    pytest.importorskip("llama_cpp")
    return LlamaCpp(smollm2, threads)


@pytest.fixture(scope="module")
def true_answer(smollm2: Path) -> Asked:
    return float_oracle(smollm2)


def test_perplexity(
    our_answer: Asked, llama_cpp: LlamaCpp, true_answer: Asked, english: str, english_ids: list[int]
) -> None:
    """Within half a percent of the float oracle, and of llama.cpp on the same windows."""

    def measure(ask: Asked) -> Perplexity:
        return perplexity(
            english_ids, len(english.encode()), scorer(ask), WINDOWS, bos=None, tick=lambda what: None
        )

    found, theirs, true = measure(our_answer), measure(llama_cpp), measure(true_answer)
    print(
        f"perplexity of {found.n_scored:,} tokens in {found.n_windows} windows: ours {found.perplexity:.4f},"
    )
    print(f"llama.cpp {theirs.perplexity:.4f}, float32 {true.perplexity:.4f}")
    assert found.n_scored == len(english_ids) - 1
    assert found.perplexity == pytest.approx(true.perplexity, rel=0.005)
    assert found.perplexity == pytest.approx(theirs.perplexity, rel=0.005)


def test_next_tokens_where_llama_cpp_wrote_the_text(
    our_answer: Asked, llama_cpp: LlamaCpp, true_answer: Asked, tokenizer: Tokenizer
) -> None:
    """At least 97 % of the likeliest next tokens are llama.cpp's; at the others two tokens nearly tie."""
    n, agreed, margins = 0, 0, []
    for n_prompt, ids in answers(llama_cpp, tokenizer, ANSWER):
        mine_TV, theirs_TV, true_TV = (
            ask(ids)[n_prompt - 1 : -1] for ask in (our_answer, llama_cpp, true_answer)
        )
        same_T = mine_TV.argmax(axis=1) == theirs_TV.argmax(axis=1)
        n, agreed = n + len(same_T), agreed + int(same_T.sum())
        margins += margin(true_TV)[~same_T].tolist()
    print(f"agreed on {agreed / n:.2%} of {n:,} tokens; largest margin of the others {max(margins):.3f}")
    assert n >= 2000
    assert agreed >= 0.97 * n
    assert max(margins) < NEAR_TIE


def test_as_close_to_float_as_llama_cpp(
    our_answer: Asked, llama_cpp: LlamaCpp, true_answer: Asked, english_ids: list[int]
) -> None:
    """On prose neither has seen: how far each is from float32, in likeliest tokens and in divergence."""
    n = 2048
    same, divergence = {"ours": 0, "llama.cpp": 0}, {"ours": 0.0, "llama.cpp": 0.0}
    for start in range(0, n, 512):
        ids = english_ids[start : start + 512]
        true_TV = true_answer(ids)
        for name, ask in {"ours": our_answer, "llama.cpp": llama_cpp}.items():
            found_TV = ask(ids)
            same[name] += int((found_TV.argmax(axis=1) == true_TV.argmax(axis=1)).sum())
            divergence[name] += float((np.exp(true_TV) * (true_TV - found_TV)).sum()) / n
    for name in same:
        print(f"{name}: {same[name] / n:.2%} of float32's tokens, divergence {divergence[name]:.5f} nats")
    assert same["ours"] >= same["llama.cpp"] - 0.01 * n
    assert divergence["ours"] <= 1.1 * divergence["llama.cpp"]


def margin(logprobs_TV: Logprobs) -> Logprobs:
    """How far the likeliest token leads the second, in nats -> [T]."""
    top_T2 = np.sort(logprobs_TV, axis=1)[:, -2:]
    return top_T2[:, 1] - top_T2[:, 0]
