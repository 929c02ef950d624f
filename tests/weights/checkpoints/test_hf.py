"""Hugging Face's folders: what they hold, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.tiny import TINY
from weights.hf_folder import write_hf

from puna.core import BadFile, BadInput, UnknownModel, Unsupported
from puna.weights import store
from puna.weights.blocks.quant import dequantize
from puna.weights.describe.config import hf_config, llama3_of_factors, same_model
from puna.weights.load import open_checkpoint


@pytest.mark.parametrize("name", TINY)
def test_tensors_and_config(name: str, tmp_path: Path) -> None:
    """The same numbers that the golden vectors of transformers were made with."""
    tiny = TINY[name]
    with open_checkpoint(write_hf(tiny, tmp_path)) as checkpoint:
        assert checkpoint.config == tiny.config
        expected = tiny.tensors()
        assert checkpoint.tensors.keys() == expected.keys()
        for key, tensor in checkpoint.tensors.items():
            found = dequantize(tensor.data(), tensor.kind, tensor.shape)
            np.testing.assert_array_equal(found, expected[key], err_msg=key)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_any_file_stands_for_the_folder(file: str, tmp_path: Path) -> None:
    folder = write_hf(TINY["llama2"], tmp_path)
    with open_checkpoint(folder / file) as checkpoint:
        assert checkpoint.folder == folder
    assert store.resolve(str(folder)) == folder


@pytest.mark.parametrize("name", TINY)
def test_written_configs_are_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = TINY[name].config
    written = hf_config(config, "F32")
    from puna.model.config import from_hf

    assert same_model(from_hf(written), config) is None
    theirs = transformers.LlamaConfig(**written)
    assert theirs.num_key_value_heads == config.n_kv_heads
    assert theirs.max_position_embeddings == config.context_length
    rope = theirs.rope_parameters if hasattr(theirs, "rope_parameters") else theirs.rope_scaling or {}
    assert rope.get("rope_type", "default") == (
        config.rope_scaling.kind if config.rope_scaling else "default"
    )


def test_factors_that_no_rule_makes() -> None:
    from dataclasses import replace

    from puna.model.config import RopeScaling

    scaling = RopeScaling("factors", factors=tuple(1.0 + 0.1 * i for i in range(16)))
    with pytest.raises(Unsupported, match="follow no rule"):
        llama3_of_factors(replace(TINY["llama2"].config, rope_scaling=scaling))


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"quantization_config": {"quant_method": "quip"}}, Unsupported, "quantized by 'quip'"),
        ({"model_type": "mistral"}, Unsupported, "names model_type 'mistral'"),
        ({"hidden_size": 256}, BadFile, r"'tok_embeddings' must have shape \(96, 256\)"),
        ({"num_hidden_layers": 1}, BadFile, "describes no such tensor"),
        ({"num_hidden_layers": 3}, BadFile, "lacks the tensor 'layers.2"),
        ({"num_key_value_heads": 4}, BadFile, "'layers.0.wk' must have shape"),
        ({"attention_bias": True}, Unsupported, "projections with bias"),
    ],
)
def test_configs_that_do_not_fit(
    changes: dict[str, Any], kind: type[BadFile], message: str, tmp_path: Path
) -> None:
    folder = write_hf(TINY["llama2"], tmp_path)
    (folder / "config.json").write_text(json.dumps(TINY["llama2"].hf | changes))
    with pytest.raises(kind, match=message) as caught:
        open_checkpoint(folder)
    assert str(caught.value).startswith(f"{folder}: ")


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="holds no checkpoint"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(Unsupported, match="not named like a file of a checkpoint"):
        open_checkpoint(tmp_path / "pytorch_model.bin")
    with pytest.raises(UnknownModel, match="there is no file or folder"):
        open_checkpoint(tmp_path / "nothing")
    folder = write_hf(TINY["llama2"], tmp_path / "hf")
    (folder / "config.json").rename(folder / "config.jsn")
    with pytest.raises(BadFile, match=r"no config\.json, .*did you mean 'config\.jsn'"):
        open_checkpoint(folder)


def test_two_checkpoints_in_one_folder(tmp_path: Path) -> None:
    folder = write_hf(TINY["llama2"], tmp_path)
    (folder / "consolidated.00.pth").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"in 2 formats; name a file .*: config\.json, params\.json"):
        open_checkpoint(folder)
    open_checkpoint(folder / "config.json").close()


def test_shards_without_their_index(tmp_path: Path) -> None:
    folder = write_hf(TINY["llama2"], tmp_path)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"x")
    with pytest.raises(BadFile, match=r"found 2 \.safetensors files without an index"):
        open_checkpoint(folder)


def test_names_of_another_format(tmp_path: Path) -> None:
    from puna.model.names import to_meta
    from puna.weights.files.layout import Slice, write_file
    from puna.weights.files.safetensors import layout

    folder = write_hf(TINY["llama2"], tmp_path / "hf")
    with open_checkpoint(folder) as checkpoint:
        slices = [Slice(to_meta(name), tensor) for name, tensor in checkpoint.tensors.items()]
        (tmp_path / "meta").mkdir()
        write_file(tmp_path / "meta", layout("model.safetensors", slices))
    (tmp_path / "meta" / "config.json").write_text(json.dumps(TINY["llama2"].hf))
    with pytest.raises(Unsupported, match="is not part of the Llama that the configuration"):
        open_checkpoint(tmp_path / "meta")
