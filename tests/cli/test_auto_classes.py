"""Folders that conversion makes of GGUF files, as transformers' Auto classes take them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from golden.tiny import TINY, Tiny
from llm.tiny_llm import _alphabet
from llm.tiny_vision import picture
from text.vocabularies import small_sentencepiece
from weights import seeing
from weights.hf_folder import write_hf

from puna.cli.main import main
from puna.images.prepare import prepare
from puna.text.files import hf_files
from puna.text.tokenizer import Tokenizer
from puna.weights.load import open_checkpoint

LETTERS = _alphabet()
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|pad|>"]
LLAMA4_IMAGE = [
    "<|image_start|>", "<|image_end|>", "<|tile_x_separator|>", "<|tile_y_separator|>", "<|image|>",
    "<|patch|>",
]  # fmt: skip
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}<|eot_id|>{% endfor %}"


def byte_level(pre: str, more: list[str]) -> dict[str, Any]:
    tokens = [*LETTERS, *LLAMA3, *more]
    roles = {"bos": LLAMA3[0], "eos": LLAMA3[1], "eom": LLAMA3[2], "eot": LLAMA3[3], "padding": LLAMA3[4]}
    entries = {
        "model": "gpt2", "pre": pre, "tokens": tokens, "merges": [], "add_bos_token": True,
        "token_type": [1] * len(LETTERS) + [3] * (len(tokens) - len(LETTERS)),
        **{f"{role}_token_id": tokens.index(name) for role, name in roles.items()},
    }  # fmt: skip
    metadata = {f"tokenizer.ggml.{key}": value for key, value in entries.items()}
    return {**metadata, "tokenizer.chat_template": TEMPLATE}


def convert_twice(folder: Path) -> Path:
    """To GGUF and back to a folder, which knows what the GGUF files say and no more."""
    back = folder.parent / "back"
    assert main(["convert", str(folder), str(folder.parent / "m.gguf")]) == 0
    assert main(["convert", str(folder.parent / "m.gguf"), str(back), "--to", "hf"]) == 0
    return back


def write(folder: Path, metadata: dict[str, Any]) -> None:
    for name, raw in hf_files(metadata, 512).items():
        (folder / name).write_bytes(raw)


@pytest.mark.parametrize("generation", ["llama1", "llama2", "llama3", "llama31", "llama32"])
def test_text_models(generation: str, tmp_path: Path) -> None:
    """Tokenizer, ids that end an answer, and a model that generates until one of them."""
    is_spm = generation in ("llama1", "llama2")
    metadata = byte_level("llama-bpe", [])
    if is_spm:
        metadata = small_sentencepiece(add_bos_token=True)
        metadata = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in metadata.items()}
    changes = {"vocab_size": len(metadata["tokenizer.ggml.tokens"])}
    folder = write_hf(Tiny(generation, {**TINY[generation].hf, **changes}), tmp_path / "hf")
    write(folder, metadata)
    back = convert_twice(folder)
    tokenizer, ours = transformers.AutoTokenizer.from_pretrained(back), Tokenizer.from_folder(back)
    for text in ("Hello, the  world\n\n 3.14", "é 😀 <|eot_id|>"):
        assert tokenizer.encode(text) == ours.encode(text, special=True)
    assert tokenizer.decode(tokenizer.encode("Hello"), skip_special_tokens=True) == "Hello"
    ends = 2 if is_spm else [257, 258, 259]
    stated = transformers.GenerationConfig.from_pretrained(back)
    model = transformers.AutoModelForCausalLM.from_pretrained(back, dtype=torch.float32)
    for config in (stated, model.generation_config, model.config):
        assert (config.bos_token_id, config.eos_token_id) == (1 if is_spm else 256, ends)
        assert config.pad_token_id == (None if is_spm else 260)
    inputs = tokenizer(["Hello"], return_tensors="pt")
    assert sorted(inputs) == ["attention_mask", "input_ids"]
    n = inputs["input_ids"].shape[1] + 1
    free = model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=None)[0].tolist()
    model.generation_config.eos_token_id = [free[n - 1]]
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False)[0].tolist() == free[:n]
    if not is_spm:
        assert tokenizer.pad_token == "<|pad|>"
        chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
        assert chat == "<|begin_of_text|>user: hi<|eot_id|>"


def has_torchvision() -> bool:
    try:
        import torchvision  # noqa: F401  # compiled against one version of torch, and may not load
    except (ImportError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("kind", ["mllama", "llama4"])
def test_models_that_see(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture and its placeholder through AutoProcessor, into the model and out of it as before."""
    if kind == "llama4" and not has_torchvision():
        pytest.skip("transformers' image processor of Llama 4 needs torchvision")
    more = LLAMA4_IMAGE if kind == "llama4" else ["<|image|>"]
    n = len(LETTERS) + len(LLAMA3)
    monkeypatch.setitem(seeing.LLAMA4_TEXT, "vocab_size", n + len(more))
    monkeypatch.setitem(seeing._MLLAMA_TEXT, "vocab_size", n)  # the image's rows come after it
    folder = seeing.save(kind, tmp_path / "hf", torch.float32)
    keys = {"image_token_index": n}
    if kind == "llama4":
        keys = {"boi_token_index": n, "eoi_token_index": n + 1, "image_token_index": n + 5}
    described = json.loads((folder / "config.json").read_text()) | keys
    (folder / "config.json").write_text(json.dumps(described))
    write(folder, byte_level("llama4" if kind == "llama4" else "llama-bpe", more))
    back = convert_twice(folder)
    assert keys.items() <= json.loads((back / "config.json").read_text()).items()
    processor = transformers.AutoProcessor.from_pretrained(back)
    assert type(processor).__name__ == {"mllama": "MllamaProcessor", "llama4": "Llama4Processor"}[kind]
    inputs = processor(images=[picture()], text="<|image|>What is it?", return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].float()  # in bfloat16 for Llama 4, whatever the model is
    check_pixels(inputs["pixel_values"], back)
    with torch.inference_mode():
        models = [transformers.AutoModelForImageTextToText.from_pretrained(f) for f in (folder, back)]
        expected, found = (logits(model.eval(), inputs) for model in models)
    torch.testing.assert_close(found, expected)
    assert models[1].generation_config.eos_token_id == [257, 258, 259]


def logits(model: Any, inputs: Any) -> torch.Tensor:
    if not isinstance(model, transformers.Llama4ForConditionalGeneration):
        return model(**inputs).logits
    # its forward by hand: that of transformers 5.24 asks its text decoder for an output that it has not
    ids, embedded = inputs["input_ids"], model.get_input_embeddings()(inputs["input_ids"])
    seen = model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True).last_hidden_state
    projected = model.multi_modal_projector(seen.view(-1, seen.size(-1)))
    places = model.get_placeholder_mask(ids, inputs_embeds=embedded, image_features=projected)
    return model.language_model(inputs_embeds=embedded.masked_scatter(places, projected)).logits


def check_pixels(pixels: torch.Tensor, folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.config.vision is not None
        ours = prepare(picture(), checkpoint.config.vision)
    tiles = pixels.reshape(-1, 3, 28, 28)[: len(ours.pixels)]
    # transformers rounds Llama 4's pixels to bfloat16
    torch.testing.assert_close(tiles, torch.from_numpy(ours.pixels), rtol=0, atol=0.012)


def test_files_of_processors_are_copied_where_they_are(tmp_path: Path) -> None:
    folder = seeing.save("mllama", tmp_path / "hf", torch.float32)
    (folder / "preprocessor_config.json").write_text('{"mine": 1}')
    assert main(["convert", str(folder), str(tmp_path / "copy"), "--to", "hf"]) == 0
    assert (tmp_path / "copy" / "preprocessor_config.json").read_text() == '{"mine": 1}'
