"""Low-rank adapters (LoRA) of files: Hugging Face's PEFT, a folder of adapter_config.json and
adapter_model.safetensors, and GGUF files of the type "adapter".

Both are read whole: an adapter is small. What a file asks for beside plain low-rank matrices is refused by
its name, as leaving it out would change the answers. PEFT: huggingface/peft, LoraConfig and save_pretrained;
GGUF: llama.cpp, convert_lora_to_gguf.py.

Shapes: E outputs, D inputs, A rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from puna.core import BadFile, Unsupported
from puna.model.config import ModelConfig
from puna.model.incoming import Slice, incoming
from puna.model.names import Scheme, adaptable_shapes, shapes
from puna.weights.blocks.formats import n_bytes
from puna.weights.blocks.tensor import RawTensor
from puna.weights.files.gguf import GgufFile
from puna.weights.files.safetensors import SafetensorsFile, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_RANK = 512

_FLOATS = ("F32", "F16", "BF16")
# keys of adapter_config.json that say nothing of how the adapter is computed, or are read here
_KNOWN = frozenset(
    (
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
        "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "bias",
        "use_rslora", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern",
        "alpha_pattern", "runtime_config", "ensure_weight_tying", "loftq_config", "eva_config",
        "corda_config", "lora_ga_config", "megatron_core", "qalora_group_size",
    )
)  # fmt: skip
# ways to begin that change the matrices under the adapter: it belongs to others than the base has
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class Part:
    """What an adapter adds to one matrix: scale * up (down x). F32, F16 or BF16."""

    down: RawTensor  # [A, D]
    up: RawTensor  # [E, A], rows in our order
    scale: float


@dataclass(frozen=True, slots=True)
class Adapter:
    parts: Mapping[str, Part]  # by our names of the matrices

    @property
    def rank(self) -> int:
        """The largest of its matrices."""
        return max(part.down.shape[0] for part in self.parts.values())

    @property
    def n_bytes(self) -> int:
        return sum(part.down.n_bytes + part.up.n_bytes for part in self.parts.values())

    @property
    def fingerprint(self) -> str:
        """Equal for equal adapters, 32 hexadecimal digits; made of every byte."""
        digest = sha256()
        for name, part in sorted(self.parts.items()):
            digest.update(f"{name} {part.scale!r}\n".encode())
            for half in (part.down, part.up):
                digest.update(f"{half.kind} {tuple(half.shape)}\n".encode())
                digest.update(half.data().tobytes())
        return digest.hexdigest()[:32]


def read_adapter(path: Path, cfg: ModelConfig) -> Adapter:
    """The adapter of a folder or GGUF file, for a model of `cfg`.

    Raises BadFile for what is damaged or belongs to another model, Unsupported for what Puna does not run.
    """
    if path.is_dir():
        try:
            return _read_peft(path, cfg)
        except BadFile as error:
            raise type(error)(f"{path}: {error}") from None
    if path.suffix == ".gguf":
        return _read_gguf(path, cfg)
    raise BadFile(
        f"an adapter must be a folder with {CONFIG} and {WEIGHTS}, or a .gguf file, and {path} is neither"
    )


def _read_peft(folder: Path, cfg: ModelConfig) -> Adapter:
    config = read_json(folder / CONFIG)
    _check_config(config)
    if not (folder / WEIGHTS).is_file():
        raise BadFile(f"expected {WEIGHTS} beside {CONFIG}, found none; adapters in other forms are not read")
    halves: dict[tuple[str, str], RawTensor] = {}
    with SafetensorsFile.open(folder / WEIGHTS) as file:
        for tensor in file.raw_tensors():
            found = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight", tensor.name)
            if found is None:
                raise Unsupported(
                    f"tensor {tensor.name!r} is no low-rank matrix of a linear layer (lora_A, lora_B), and "
                    "Puna adapts nothing else"
                )
            halves[found[1], found[2]] = _kept(tensor)
    parts: dict[str, Part] = {}
    for module in _modules(halves):
        down, up = halves[module, "A"], halves[module, "B"]
        name, ours = _ours("hf", f"{module}.weight", cfg)
        scale = _peft_scale(config, module, down.shape[0])
        parts[name] = _part(cfg, name, down, _in_our_order(up, ours), scale)
    return Adapter(parts)


def _check_config(config: Mapping[str, Any]) -> None:
    def refuse(what: str) -> Unsupported:
        return Unsupported(f"{CONFIG} has {what}, which Puna does not compute; merge the adapter with PEFT")

    if config.get("peft_type") != "LORA":
        raise refuse(f"peft_type {config.get('peft_type')!r}, not LORA")
    if config.get("bias", "none") != "none":
        raise refuse(f"bias {config['bias']!r}, not none")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise refuse(f"init_lora_weights {start!r}, whose base matrices are not those of the model")
    for key in sorted(config.keys() - _KNOWN):
        if config[key]:
            raise refuse(f"{key} = {str(config[key])[:60]}")
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict):
            raise BadFile(f"{key} of {CONFIG} must map modules to numbers, found {config[key]!r:.60}")


def _peft_scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """lora_alpha / r, or with use_rslora / sqrt(r) (Kalajdzievski 2023, arXiv 2312.03732)."""
    stated = _of_module(config, "rank_pattern", module, config.get("r"))
    if stated != rank:
        raise BadFile(f"{module} should have rank {stated} by {CONFIG}, its matrices have {rank}")
    alpha = _of_module(config, "alpha_pattern", module, config.get("lora_alpha"))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not isfinite(alpha):
        raise BadFile(f"lora_alpha of {module} must be a number, found {alpha!r:.60}")
    return float(alpha) / (sqrt(rank) if config.get("use_rslora") else rank)


def _of_module(config: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    """The entry of a pattern for a module, by PEFT's rule: the first key that ends it, dots before it."""
    for pattern, value in (config.get(key) or {}).items():
        try:
            if len(pattern) <= 200 and re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise BadFile(f"{key} of {CONFIG}: {pattern!r} is no pattern ({error})") from None
    return default


def _read_gguf(path: Path, cfg: ModelConfig) -> Adapter:
    halves: dict[tuple[str, str], RawTensor] = {}
    with GgufFile.open(path) as file:
        kind = file.metadata.get("general.type"), file.metadata.get("adapter.type")
        if kind != ("adapter", "lora"):
            raise BadFile(
                f"{path}: expected a GGUF file of an adapter (lora), found {kind}; this is a model?"
            )
        alpha = float(file.metadata.get("adapter.lora.alpha", 0.0))
        for tensor in file.raw_tensors():
            module, _, half = tensor.name.rpartition(".lora_")
            if half not in ("a", "b"):
                raise Unsupported(
                    f"{path}: tensor {tensor.name!r} is no lora_a or lora_b, Puna has no use for it"
                )
            halves[module, half.upper()] = _kept(tensor)
    parts: dict[str, Part] = {}
    for module in _modules(halves):
        down, up = halves[module, "A"], halves[module, "B"]
        name, ours = _ours("gguf", module, cfg)
        scale = alpha / down.shape[0] if alpha else 1.0  # as llama.cpp has it
        parts[name] = _part(cfg, name, down, _in_our_order(up, ours), scale)
    return Adapter(parts)


def _kept(tensor: RawTensor) -> RawTensor:
    """The same tensor with its bytes in memory, when the file is closed."""
    if tensor.kind not in _FLOATS or len(tensor.shape) != 2:
        raise Unsupported(
            f"tensor {tensor.name!r} is {tensor.kind} {list(tensor.shape)}; adapters are matrices of "
            f"{', '.join(_FLOATS)}"
        )
    data = np.array(tensor.data())
    return RawTensor(tensor.name, tensor.kind, tensor.shape, lambda: data)


def _modules(halves: Iterable[tuple[str, str]]) -> list[str]:
    """The modules that have both matrices; all must."""
    downs, ups = ({module for module, half in halves if half == which} for which in "AB")
    for module in sorted(downs ^ ups):
        raise BadFile(f"{module} has one of the two matrices of an adapter; the file is damaged")
    if not downs:
        raise BadFile("the adapter has no matrices at all; get it again")
    return sorted(downs)


def _ours(scheme: Scheme, foreign: str, cfg: ModelConfig) -> tuple[str, Slice]:
    """Our name of an adapted matrix, and what becomes of its rows."""
    try:
        found = incoming(scheme, foreign, cfg)
    except Unsupported:
        found = ()
    module = foreign.removesuffix(".weight")
    ours = found[0].ours if len(found) == 1 else ""
    is_absent = ours.startswith("layers.") and ours not in dict(shapes(cfg))
    if not ours or is_absent or found[0] != Slice(ours, heads=found[0].heads):
        raise BadFile(
            f"the adapter changes {module!r}, which this model does not have; it is of another model"
        )
    if ours not in adaptable_shapes(cfg):
        raise Unsupported(
            f"the adapter changes {module!r}; Puna adapts the matrices of attention and of dense "
            "feed-forward layers only"
        )
    return ours, found[0]


def _in_our_order(up: RawTensor, ours: Slice) -> RawTensor:
    """Rows move as those of the matrix do."""
    if not ours.heads:
        return up
    if up.shape[0] % (2 * ours.heads):
        return up  # its shape will be refused
    rows = ours.of(up.data().reshape(up.shape[0], -1)).reshape(-1)
    return replace(up, data=lambda: rows)


def _part(cfg: ModelConfig, name: str, down: RawTensor, up: RawTensor, scale: float) -> Part:
    n_out, n_in = adaptable_shapes(cfg)[name]
    rank = down.shape[0]
    if down.shape != (rank, n_in) or up.shape != (n_out, rank) or not 1 <= rank <= MAX_RANK:
        raise BadFile(
            f"the adapter of {name} should be [rank, {n_in}] and [{n_out}, rank] with a rank up to "
            f"{MAX_RANK}, found {list(down.shape)} and {list(up.shape)}; it is of another model"
        )
    assert down.data().size == n_bytes(down.kind, down.shape)
    return Part(down, up, scale)
