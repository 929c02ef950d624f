"""Make sampling.npz: what transformers' own logits processors keep of rows of logits, and with what
probability.

    python tests/golden/make_sampling.py        needs torch and transformers

sampling.npz: logits_RV float32, tokens_RS int64 (tokens seen so far), params (JSON, one object per case),
row_C (the row of each case), probabilities_CV float64, provenance (JSON).
R rows, V vocabulary, S seen, C cases.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

R, V, S = 6, 500, 40
CASES = [
    {"temperature": 0.7},
    {"temperature": 0.6, "top_p": 0.9},
    {"top_p": 0.5},
    {"temperature": 1.5, "top_p": 0.99},
    {"top_k": 1},
    {"temperature": 0.8, "top_k": 40},
    {"temperature": 1.2, "top_k": 450, "top_p": 0.8},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.7},
    {"min_p": 0.05},
    {"temperature": 2.0, "min_p": 0.2},
    {"top_p": 0.95, "min_p": 0.02},
    {"typical_p": 0.9},
    {"typical_p": 0.2},
    {"temperature": 0.9, "top_k": 60, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.8},
    {"repetition_penalty": 1.3, "temperature": 0.8, "top_p": 0.9},
    {"repetition_penalty": 0.7, "top_k": 30},
]
# in the order in which generate() applies them
PROCESSORS = {
    "repetition_penalty": RepetitionPenaltyLogitsProcessor,
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
    "typical_p": TypicalLogitsWarper,
}


def main() -> None:
    rng = np.random.Generator(np.random.Philox(7))
    widths_R1 = np.linspace(0.5, 5.0, R)[:, None]
    logits_RV = (rng.standard_normal((R, V)) * widths_R1).astype(np.float32)
    tokens_RS = rng.integers(0, V, (R, S))
    rows, params, probabilities = [], [], []
    for row in range(R):
        for case in CASES:
            chain = LogitsProcessorList(
                [make(case[name]) for name, make in PROCESSORS.items() if name in case]
            )
            scores = torch.tensor(logits_RV[row : row + 1], dtype=torch.float64)
            scores = chain(torch.tensor(tokens_RS[row : row + 1]), scores)
            rows.append(row)
            params.append(case)
            probabilities.append(torch.softmax(scores, -1)[0].numpy())
    provenance = {
        "command": "python tests/golden/make_sampling.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }
    np.savez_compressed(
        Path(__file__).parent / "sampling.npz",
        logits_RV=logits_RV,
        tokens_RS=tokens_RS,
        row_C=np.array(rows),
        params=np.array(json.dumps(params)),
        probabilities_CV=np.array(probabilities),
        provenance=np.array(json.dumps(provenance)),
    )


if __name__ == "__main__":
    main()
