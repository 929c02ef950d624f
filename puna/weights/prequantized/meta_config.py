"""What a params.json of Meta says of quantized matrices, checked.

Meta's int4 releases of Llama 3.2 state `quantization_args`, those made with QLoRA `lora_args` too
(llama-models, llama3/args.py). Files of 8-bit floats say nothing: the tensors tell (meta_fp8.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from puna.core import BadFile, Unsupported
from puna.model.record import Record, require

_SCHEME = "int4_weight_int8_dynamic_activation"


@dataclass(frozen=True, slots=True)
class MetaQuantization:
    group_size: int  # inputs of a row that share a scale
    spinquant: bool  # w2 multiplies the Hadamard transform of its input
    lora_rank: int = 0  # 0: no adapters
    lora_scale: float = 1.0  # multiplies what an adapter adds

    def __str__(self) -> str:
        made = "SpinQuant" if self.spinquant else f"QLoRA of rank {self.lora_rank}" if self.lora_rank else ""
        return f"Meta's int4{made and f' ({made})'}, groups of {self.group_size}"


def read_meta_quantization(
    params: Mapping[str, Any],
) -> tuple[dict[str, Any], MetaQuantization | None]:
    """A params.json without what it says of quantization, and that; None where it says nothing.

    Raises Unsupported for a scheme that Puna does not read, BadFile for what is malformed.
    """
    plain = {key: value for key, value in params.items() if key not in ("quantization_args", "lora_args")}
    record = Record(params, "params.json")
    if not record.has("quantization_args"):
        if record.has("lora_args"):
            raise Unsupported(
                "params.json states lora_args without quantization_args, and Puna reads adapters of int4 "
                "releases only; merge them into the weights"
            )
        return plain, None
    stated = record.section("quantization_args")
    stated.refuse_unknown(("scheme", "group_size", "spinquant"))
    scheme = stated.text("scheme", _SCHEME)
    if scheme != _SCHEME:
        raise Unsupported(
            f"scheme of quantization_args is {scheme!r:.60}, and Puna reads {_SCHEME}; use another release"
        )
    group_size = stated.integer("group_size")
    require(0 < group_size < 2**31, "group_size of quantization_args", "a count", group_size)
    spinquant = stated.flag("spinquant", False)
    if not record.has("lora_args"):
        return plain, MetaQuantization(group_size, spinquant)
    lora = record.section("lora_args")
    lora.refuse_unknown(("rank", "scale"))
    rank, scale = lora.integer("rank"), lora.number("scale")
    if not 0 < rank < 2**16:
        raise BadFile(f"rank of lora_args must be from 1 to 65535, found {rank}; download params.json again")
    return plain, MetaQuantization(group_size, spinquant, rank, scale)
