"""A tiny Llama 4 for text with a tokenizer of bytes, as transformers saves one."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from llm.tiny_llm import _alphabet
from weights.seeing import LLAMA4_TEXT

from puna.text.files import hf_files

LETTERS = _alphabet()
CONTROL = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>",
]  # fmt: skip
TOKENS = [*LETTERS, *CONTROL]
BOS, EOT = TOKENS.index("<|begin_of_text|>"), TOKENS.index("<|eot|>")


def write_llama4(folder: Path) -> Path:
    """Without a chat template: prompts are built for the generation that the control tokens tell."""
    changes = {"vocab_size": len(TOKENS), "max_position_embeddings": 512, "bos_token_id": BOS}
    config = transformers.Llama4TextConfig(**{**LLAMA4_TEXT, **changes, "eos_token_id": EOT})
    torch.manual_seed(5)
    model = transformers.Llama4ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    tokenizer = {
        "model": "gpt2",
        "pre": "llama4",
        "tokens": TOKENS,
        "token_type": [1] * len(LETTERS) + [3] * len(CONTROL),
        "merges": [],
        "bos_token_id": BOS,
        "eos_token_id": EOT,
        "add_bos_token": True,
    }
    for name, raw in hf_files(
        {f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()}, 512
    ).items():
        if name != "generation_config.json":
            (folder / name).write_bytes(raw)
    return folder


def greedy(folder: Path, ids: list[int], n: int) -> list[int]:
    """What transformers continues `ids` with."""
    model = transformers.Llama4ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    out = list(ids)
    with torch.inference_mode():
        for _ in range(n):
            out.append(int(model(torch.tensor([out]), use_cache=False).logits[0, -1].argmax()))
    return out[len(ids) :]
