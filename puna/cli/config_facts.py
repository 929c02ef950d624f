"""A configuration for scripts and for people: `puna show` and what else prints one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from puna.model.config import ModelConfig


def config_report(config: ModelConfig) -> dict[str, Any]:
    """Plain data, with `kind` saying which of the image encoders it is."""
    from puna.model.vision_config import Llama32VisionConfig

    report = asdict(config)
    if config.vision is not None:
        kind = "llama3.2" if isinstance(config.vision, Llama32VisionConfig) else "llama4"
        report["vision"] = {"kind": kind, **report["vision"]}
    return report


def config_facts(report: Mapping[str, Any]) -> dict[str, Any]:
    """`config_report` as one short text for each field; what a model does not have is left out."""
    facts = {name: value for name, value in report.items() if value is not None and value != ()}
    facts["norm_eps"] = f"{report['norm_eps']:.6g}"
    for name, write in _SHORT.items():
        if report[name]:
            facts[name] = write(report[name])
        else:
            facts.pop(name, None)
    return facts


def _experts(e: Mapping[str, Any]) -> str:
    layers = "every layer" if e["every"] == 1 else f"every {e['every']}. layer"
    return (
        f"{e['n_active']} of {e['n_experts']} in {layers}, ffn_dim {e['expert_ffn_dim']}, "
        f"shared {e['shared_ffn_dim']}"
    )


_SHORT: dict[str, Callable[[Any], str]] = {
    "rope_scaling": lambda s: f"{s['kind']}, factor {s['factor']:g}",
    "experts": _experts,
    "qk_norm": str,
    "query_temperature": lambda t: f"scale {t['attn_scale']:g}, floor {t['floor_scale']:g}",
    "cross_attention": lambda layers: "before layers " + ", ".join(map(str, layers)),
    "n_image_embeddings": str,
    "vision": lambda v: f"{v['kind']}, tiles of {v['tile_size']}, dim {v['dim']}, {v['n_layers']} layers",
}
