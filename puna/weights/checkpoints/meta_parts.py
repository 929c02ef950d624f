"""How Meta's files share out a tensor: fairscale's parallel layers, and what is fused in Llama 4's files.

Column-parallel layers have a part of the rows in each file, row-parallel ones a part of the columns, all else
is whole in each (llama-models: checkpoint.py, llama3/multimodal/model.py, llama4/vision). A fused tensor is
several below each other, of each of which a file has its part: q, k and v; w1 and w3; every expert's w2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile
from puna.model.config import ModelConfig
from puna.weights.blocks.tensor import RawTensor

_ROWS = re.compile(
    r"attention\.w[qkv]\.weight|attention\.wqkv\.weight|feed_forward\.w[13]\.weight|feed_forward\.mlp\.fc1_weight"
    r"|experts\.w[13]\.weight|feed_forward\.(w_in_shared_FD|w_swiglu_FD)\.weight|experts\.moe_w_out_eF_D|(^|\.)output\.weight"
    r"|learnable_embedding\.weight|attn\.w[qkv]\.(weight|bias)|mlp\.c_fc\.(weight|bias)|conv1\._linear\.weight"
    r"|vision_projection\.(weight|bias)"
)
_COLUMNS = re.compile(
    r"attention\.wo\.weight|feed_forward\.w2\.weight|feed_forward\.mlp\.fc2_weight|attn\.wo\.weight"
    r"|experts\.w2\.weight|feed_forward\.w_out_shared_DF\.weight|experts\.moe_w_(in|swiglu)_eD_F|mlp\.c_proj\.weight"
)


@dataclass(frozen=True, slots=True)
class Share:
    """`axis` is the one along which files have parts, None where each has all; `sections` are the rows of
    the tensors that a fused one is made of, empty where it is one.
    """

    axis: int | None = None
    sections: tuple[int, ...] = ()


def share(name: str, config: ModelConfig, embeddings_axis: int | None) -> Share:
    """How a tensor of Meta's name is shared out; the axis of the embedding table is given."""
    if name.endswith("tok_embeddings.weight"):
        return Share(embeddings_axis)
    if _COLUMNS.search(name):
        return Share(1)
    if not _ROWS.search(name):
        return Share()
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    if "wqkv" in name:
        return Share(0, (queries, keys, keys))
    if "fc1_weight" in name:
        return Share(0, (config.ffn_dim, config.ffn_dim))
    if re.search(r"experts\.(moe_w_out_eF_D|w[13]\.weight)", name) and config.experts is not None:
        return Share(0, (config.experts.expert_ffn_dim,) * config.experts.n_experts)
    return Share(0)


def joined(parts: Sequence[RawTensor], how: Share) -> RawTensor:
    """The whole of a tensor from its part in each file, put together or compared when it is asked for.

    Raises BadFile where the parts cannot be such parts; where files must be equal, their data() does.
    """
    first, n = parts[0], len(parts)
    if n == 1:
        return first

    def release() -> None:
        for part in parts:
            part.release()

    if how.axis is None:
        return replace(first, data=partial(_equal, parts), release=release)
    if not first.shape or len(first.shape) > 2 or how.axis >= len(first.shape):
        raise BadFile(f"tensor {first.name!r} must be a matrix, found shape {first.shape}; download it again")
    sections = [rows // n for rows in how.sections]
    if sections and (sum(sections) != first.shape[0] or any(rows % n for rows in how.sections)):
        raise BadFile(
            f"tensor {first.name!r} must have {sum(how.sections)} rows in {n} files by params.json, found "
            f"{first.shape[0]} in each; bring the files of one checkpoint together again"
        )
    shape = tuple(length * n if i == how.axis else length for i, length in enumerate(first.shape))
    data = partial(_concatenated, parts, how.axis, sections)
    return replace(first, shape=shape, data=data, release=release)


def _concatenated(parts: Sequence[RawTensor], axis: int, sections: Sequence[int]) -> NDArray[np.uint8]:
    arrays = [part.data().reshape(part.shape[0], -1) for part in parts]
    if not sections:
        return np.concatenate(arrays, axis).reshape(-1)
    ends = np.cumsum(sections)
    pieces = [array[end - rows : end] for rows, end in zip(sections, ends, strict=True) for array in arrays]
    return np.concatenate(pieces).reshape(-1)


def _equal(parts: Sequence[RawTensor]) -> NDArray[np.uint8]:
    first = parts[0].data()
    for i, part in enumerate(parts):
        if not np.array_equal(part.data(), first):
            raise BadFile(
                f"tensor {part.name!r} must be equal in all files, file {i:02d} has other values than 00; "
                "bring the files of one checkpoint together again"
            )
    return first


def without_copies(config: ModelConfig, tensor: RawTensor) -> RawTensor:
    """wk and wv with each head once, where there are more files than key/value heads."""
    wanted = config.n_kv_heads * config.head_dim
    if not tensor.name.endswith((".wk", ".wv")) or not tensor.name.startswith(("layers.", "cross_attention")):
        return tensor
    copies = tensor.shape[0] // wanted if tensor.shape and tensor.shape[0] % wanted == 0 else 0
    if copies < 2:
        return tensor
    read = partial(_one_of_each, tensor, config.n_kv_heads, copies)
    return replace(tensor, shape=(wanted, *tensor.shape[1:]), data=read)


def _one_of_each(tensor: RawTensor, n_heads: int, copies: int) -> NDArray[np.uint8]:
    heads_KNW = tensor.data().reshape(n_heads, copies, -1)
    if not (heads_KNW == heads_KNW[:, :1]).all():
        raise BadFile(
            f"the heads of {tensor.name!r} must come {copies} times each, as the number of files asks for, "
            "and their copies differ; download the checkpoint again"
        )
    return np.ascontiguousarray(heads_KNW[:, 0]).reshape(-1)
