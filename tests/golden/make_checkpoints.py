"""Makes tests/golden/checkpoints/. Needs torch, which the tests do not.

    PYTHONPATH=.:tests python tests/golden/make_checkpoints.py

Sharded as Meta's code shards (llama-models, fairscale's parallel layers): columns of the embedding table up
to Llama 2, rows since; output parts of wq wk wv w1 w3 and output, input parts of wo and w2, norms whole.
"""

from __future__ import annotations

import json
from collections import OrderedDict

import torch
from golden.checkpoints import FOLDER, LLAMA2, LLAMA3, tensors

from puna.model.config import ModelConfig
from puna.model.names import to_meta

ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
COLUMNS = ("wo", "w2")


def shards(config: ModelConfig, n: int, dtype: torch.dtype, columns: tuple[str, ...]) -> list[dict]:
    files: list[dict] = [OrderedDict() for _ in range(n)]
    for name, array in tensors(config).items():
        whole = torch.from_numpy(array).to(dtype)
        part = name.split(".")[-1]
        for i, file in enumerate(files):
            if part in columns:
                piece = whole.chunk(n, 1)[i]
            elif part in ROWS or part == "tok_embeddings":
                piece = whole.chunk(n, 0)[i]
            else:
                piece = whole
            file[to_meta(name)] = piece.clone()
    return files


def save(name: str, files: list[dict], params: dict, **options: bool) -> None:
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params) + "\n")
    for i, file in enumerate(files):
        torch.save(file, folder / f"consolidated.{i:02d}.pth", **options)


def main() -> None:
    common = {"dim": 16, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 16, "norm_eps": 1e-5}
    llama2 = {**common, "n_layers": 2, "vocab_size": -1}
    llama3 = {**common, "n_layers": 1, "vocab_size": 32, "rope_theta": 500000.0}
    save("llama2", shards(LLAMA2, 2, torch.float16, (*COLUMNS, "tok_embeddings")), llama2)
    save("llama3", shards(LLAMA3, 2, torch.bfloat16, COLUMNS), llama3)
    one = shards(LLAMA3, 1, torch.float32, COLUMNS)
    one[0]["rope.freqs"] = torch.ones(2)
    # As a module's state_dict: with `_metadata`, and parameters instead of tensors.
    one[0]["norm.weight"] = torch.nn.Parameter(one[0]["norm.weight"])
    one[0]._metadata = OrderedDict(version=1)
    save("one", one, llama3)
    save("legacy", one, llama3, _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
