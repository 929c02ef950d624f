"""Makes tests/golden/tiny/*.npz. Needs torch, transformers, gguf and llama-cpp-python, which the tests do
not.

    PYTHONPATH=.:tests python tests/golden/make_tiny.py

Log-probabilities are natural, float32, by: transformers' LlamaForCausalLM, eager attention, float32, no
cache; llama.cpp on the checkpoint as an F32 GGUF file with an F32 cache and flash attention off. Versions
are printed into tiny/PROVENANCE.json.
"""

from __future__ import annotations

import ctypes
import json
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch
import transformers
from golden.tiny import (
    FOLDER,
    N_GREEDY,
    N_PROMPT,
    TINY,
    Tiny,
    gguf_metadata,
    gguf_tensors,
    in_gguf,
)

from puna.model.names import PERMUTED, permute, to_hf


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return (x - np.log(np.exp(x).sum(axis=-1, keepdims=True))).astype(np.float32)


def hf_model(tiny: Tiny) -> transformers.LlamaForCausalLM:
    cfg = tiny.config
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**json.loads(json.dumps(tiny.hf))))
    model.set_attn_implementation("eager")
    state = {}
    for name, array in tiny.tensors().items():
        part = name.split(".")[-1]
        if part in PERMUTED:
            array = permute(array, cfg.n_heads if part == "wq" else cfg.n_kv_heads)
        state[to_hf(name)] = torch.from_numpy(array.copy())
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    model.tie_weights()
    return model.float().eval()


@torch.no_grad()
def hf_logprobs(tiny: Tiny, ids: list[int]) -> np.ndarray:
    """A fresh model each time: dynamic scaling remembers the longest sequence it has seen."""
    logits = hf_model(tiny)(torch.tensor([ids]), use_cache=False).logits[0]
    return log_softmax(logits.numpy())


def hf_greedy(tiny: Tiny) -> tuple[list[int], list[float]]:
    ids, chosen = tiny.tokens()[:N_PROMPT], []
    for _ in range(N_GREEDY if tiny.name != "longrope" else N_GREEDY - 8):
        last = hf_logprobs(tiny, ids)[-1]
        best, second = np.sort(last)[::-1][:2]
        assert best - second > 1e-3, f"{tiny.name}: a near-tie; change its seed"
        ids.append(int(last.argmax()))
        chosen.append(float(best))
    return ids[N_PROMPT:], chosen


def llamacpp_logprobs(tiny: Tiny, path: Path) -> np.ndarray:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in gguf_metadata(tiny).items():
        if key == "general.architecture":
            continue
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(key, value)
    for name, array in gguf_tensors(tiny).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ids = tiny.tokens()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = tiny.full_context or tiny.config.context_length, 512, 512
    params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_threads = params.n_threads_batch = 1
    context = llama_cpp.llama_init_from_model(model, params)
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.logits[i] = token, i, True
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    assert llama_cpp.llama_decode(context, batch) == 0
    shape = (tiny.config.vocab_size,)
    rows = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), shape) for i in range(len(ids))]
    logits = np.array(rows)
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return log_softmax(logits)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    torch.set_num_threads(1)
    for tiny in TINY.values():
        greedy, greedy_logprobs = hf_greedy(tiny)
        arrays: dict[str, Any] = {
            "logprobs": hf_logprobs(tiny, tiny.tokens()),
            "greedy": np.array(greedy),
            "greedy_logprobs": np.array(greedy_logprobs, np.float32),
        }
        if tiny.config.rope_scaling is not None and in_gguf(tiny):
            with tempfile.TemporaryDirectory() as folder:
                arrays["llamacpp_logprobs"] = llamacpp_logprobs(tiny, Path(folder) / "tiny.gguf")
            apart = np.abs(arrays["llamacpp_logprobs"] - arrays["logprobs"]).max()
            print(f"{tiny.name}: transformers and llama.cpp at most {apart:.2g} apart")
        np.savez_compressed(FOLDER / f"{tiny.name}.npz", **arrays)
    versions = {
        "script": "tests/golden/make_tiny.py",
        "python": platform.python_version(),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "llama-cpp-python": llama_cpp.__version__,
        "gguf": version("gguf"),
    }
    (FOLDER / "PROVENANCE.json").write_text(json.dumps(versions, indent=1) + "\n")


if __name__ == "__main__":
    main()
