"""A vision file that conversion writes, read by llama.cpp: it puts the picture where transformers does."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("llama_cpp")

import llama_cpp
import torch
from llama_cpp import mtmd_cpp as mtmd
from llm.tiny_llm import _alphabet
from weights import seeing

from puna.cli.main import main
from puna.text.files import hf_files

pytestmark = pytest.mark.peers

SIDE = 28  # pixels of the tiny encoder's tile
CONTROL = [
    "<|begin_of_text|>", "<|eot|>", "<|image_start|>", "<|image_end|>", "<|image|>", "<|patch|>",
    "<|tile_x_separator|>", "<|tile_y_separator|>",
]  # fmt: skip


def write_tokenizer(folder: Path) -> None:
    letters = _alphabet()
    entries = {
        "model": "gpt2", "pre": "llama4", "tokens": [*letters, *CONTROL], "merges": [],
        "token_type": [1] * len(letters) + [3] * len(CONTROL), "bos_token_id": 256, "eos_token_id": 257,
    }  # fmt: skip
    metadata = {f"tokenizer.ggml.{key}": value for key, value in entries.items()}
    for name, raw in hf_files(metadata, 512).items():
        (folder / name).write_bytes(raw)


def llama_cpp_embeddings(text: Path, vision: Path, picture: np.ndarray) -> np.ndarray:
    """What llama.cpp's encoder makes of one picture [tokens, dim]."""
    llama_cpp.llama_backend_init()
    loading = llama_cpp.llama_model_default_params()
    loading.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(text).encode(), loading)
    params = mtmd.mtmd_context_params_default()
    params.use_gpu, params.n_threads = False, 1
    context: Any = mtmd.mtmd_init_from_file(str(vision).encode(), model, params)
    assert context
    pixels = (ctypes.c_uint8 * picture.size).from_buffer_copy(picture.tobytes())
    bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(mtmd.mtmd_bitmap_init(SIDE, SIDE, pixels))
    marker = mtmd.mtmd_default_marker()
    prompt = mtmd.mtmd_input_text(marker, len(marker), False, True)
    chunks = mtmd.mtmd_input_chunks_init()
    assert mtmd.mtmd_tokenize(context, chunks, ctypes.byref(prompt), bitmaps, 1) == 0
    found = [mtmd.mtmd_input_chunks_get(chunks, i) for i in range(mtmd.mtmd_input_chunks_size(chunks))]
    (image,) = (c for c in found if mtmd.mtmd_input_chunk_get_type(c) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE)
    assert mtmd.mtmd_encode_chunk(context, image) == 0
    shape = (mtmd.mtmd_input_chunk_get_n_tokens(image), llama_cpp.llama_model_n_embd(model))
    values = np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(context), (shape[0] * shape[1],))
    return values.reshape(shape).copy()


def test_llama_cpp_sees_what_transformers_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(seeing.LLAMA4_TEXT, "vocab_size", 256 + len(CONTROL))
    folder = seeing.save("llama4", tmp_path / "hf", torch.float32)
    write_tokenizer(folder)
    assert main(["convert", str(folder), str(tmp_path / "m.gguf")]) == 0
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    theirs = llama_cpp_embeddings(tmp_path / "m.gguf", tmp_path / "mmproj-m.gguf", picture)
    model = seeing.load(folder)
    pixels = torch.tensor((picture.astype(np.float32) / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
    with torch.inference_mode():
        seen = model.vision_model(pixels).last_hidden_state
        expected = model.multi_modal_projector(seen.view(-1, seen.size(-1))).numpy()
    np.testing.assert_allclose(theirs, expected, rtol=0, atol=2e-3)  # llama.cpp looks GELU up in a table
