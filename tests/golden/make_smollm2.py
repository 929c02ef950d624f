"""Record what llama.cpp and float32 say of SmolLM2, as smollm2.json.

    PYTHONPATH=.:tests python tests/golden/make_smollm2.py

needs llama-cpp-python (0.3.36 made the stored file) and the pulled model. Stored: the perplexity of
english.txt (written for this purpose) by both; and along the beginning of llama.cpp's own greedy answers, its
likeliest next token, that one's log-probability, and by how much float32 prefers its likeliest to the second.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from peers.engines import Asked, LlamaCpp, answers, float_oracle, scorer

from puna.evals.perplexity import WindowConfig, perplexity
from puna.text.tokenizer import Tokenizer
from puna.weights import store
from puna.weights.load import open_checkpoint

FOLDER = Path(__file__).parent
LENGTH = 70  # tokens of each prompt and its answer
WINDOWS = WindowConfig()


def along(prompt: int, ids: list[int], llama_cpp: Asked, true: Asked) -> dict[str, Any]:
    theirs_TV, true_TV = (ask(ids)[prompt - 1 : -1] for ask in (llama_cpp, true))
    top_T2 = np.sort(true_TV, axis=1)[:, -2:]
    return {
        "n_prompt": prompt,
        "ids": ids,
        "best": theirs_TV.argmax(axis=1).tolist(),
        "logprob": theirs_TV.max(axis=1).round(4).tolist(),
        "float_margin": (top_T2[:, 1] - top_T2[:, 0]).round(4).tolist(),
    }


def main() -> None:
    path = store.resolve("smollm2")
    with open_checkpoint(path) as checkpoint:
        tokenizer = Tokenizer.from_gguf(checkpoint.metadata)
    llama_cpp, true = LlamaCpp(path, threads=2), float_oracle(path)
    text = (FOLDER / "english.txt").read_text(encoding="utf-8")
    ids = tokenizer.encode(text, bos=False)
    golden = {
        "provenance": {
            "script": "tests/golden/make_smollm2.py",
            "model": "smollm2, sha256 b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            "llama-cpp-python": version("llama-cpp-python"),
            "numpy": version("numpy"),
        },
        "windows": asdict(WINDOWS),
        "perplexity": {
            name: perplexity(
                ids, len(text.encode()), scorer(ask), WINDOWS, bos=None, tick=lambda what: None
            ).perplexity
            for name, ask in {"llama.cpp": llama_cpp, "float32": true}.items()
        },
        "answers": [along(n, answer, llama_cpp, true) for n, answer in answers(llama_cpp, tokenizer, LENGTH)],
    }
    (FOLDER / "smollm2.json").write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
