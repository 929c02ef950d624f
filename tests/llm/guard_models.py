"""Small guard models in the shape of Llama 3's, as folders that transformers wrote.

The vocabulary is byte-level with Llama 3's way of cutting words; "safe", "unsafe" and an empty line are
tokens as they are there.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from safety import guards
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

CONTROL = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_MERGES = ["s a", "f e", "sa fe", "u n", "un safe", "Ċ Ċ", "Ġ safe", "Ġ Ġ"]


def vocabulary() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(merge.replace(" ", "") for merge in _MERGES)]
    merges = [(left, right) for left, right in (merge.split(" ") for merge in _MERGES)]
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, ignore_merges=True))
    cut = pre_tokenizers.Split(Regex(_CUT), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROL])
    return made


def write(folder: Path, model: transformers.LlamaForCausalLM, template: str | None) -> Path:
    made = vocabulary()
    model.save_pretrained(folder)
    made.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": CONTROL[0],
        "eos_token": CONTROL[3],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def random_guard(folder: Path, seed: int = 1) -> Path:
    """It says this and that."""
    torch.manual_seed(seed)
    made = vocabulary()
    config = transformers.LlamaConfig(
        vocab_size=made.get_vocab_size(), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
        bos_token_id=made.token_to_id(CONTROL[0]), eos_token_id=made.token_to_id(CONTROL[3]),
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # a model whose answer depends on what it was asked
                torch.nn.init.normal_(parameter, std=2 * parameter.shape[-1] ** -0.5)
    return write(folder, model, guards.RELEASED["llama-guard-3-8b"])


def forced_guard(folder: Path, after: dict[str, dict[str, float]], template: str | None) -> Path:
    """What it says next depends on the last token alone: `after` has probabilities by names of tokens."""
    made = vocabulary()
    size = made.get_vocab_size() + -made.get_vocab_size() % 32
    config = transformers.LlamaConfig(
        vocab_size=made.get_vocab_size(), hidden_size=size, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=size // 32, num_key_value_heads=size // 32, max_position_embeddings=4096,
        tie_word_embeddings=False, rms_norm_eps=1e-12, bos_token_id=made.token_to_id(CONTROL[0]),
        eos_token_id=made.token_to_id(CONTROL[3]),
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float(parameter.ndim == 1))
        model.model.embed_tokens.weight.copy_(torch.eye(config.vocab_size, size))
        for token, wanted in after.items():
            for said, probability in wanted.items():
                logit = torch.log(torch.tensor(probability)) + 40  # above those of all others, which are 0
                model.lm_head.weight[_id(made, said), _id(made, token)] = logit / size**0.5
    return write(folder, model, template)


def _id(made: Tokenizer, name: str) -> int:
    found = made.token_to_id(name)
    assert found is not None, name
    return int(found)
