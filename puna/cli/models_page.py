"""docs/models.md, made from the catalog: `puna list --catalog --markdown`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from puna.cli.common import billions, size
from puna.model.catalog import ANNOUNCED, CATALOG, CatalogEntry
from puna.model.sizes import kv_bytes, n_active, n_parameters
from puna.weights.footprint import FORMATS_SHOWN, weight_bytes

_HEAD = """# Models

Every model that Puna knows by name. This page is made by `puna list --catalog --markdown`, and a test says
when it is out of date; `puna show llama-4-scout-instruct` tells all of one model.

Total parameters include the image encoder; active ones are those of the text decoder that one token meets.
"""
_WEIGHTS = """
## Bytes

About what the weights take. bf16, fp8 and int4 include the image encoder and follow Meta's recipes (fp8:
feed-forward matrices, of Llama 4 routed experts, without the first and last layer; int4: see
`puna/weights/footprint.py`); q8_0 and q4_k_m are GGUF files of the text decoder. The cache is that of one
sequence in 16 bits, at the model's own context or at 131,072 positions if it has more. Layers with chunked
attention stop growing at 8,192 positions. An image of Llama 3.2 Vision takes its own cache beside that.
"""
_NOTES = """
## Notes
"""
_NOT_HERE = """- Prompt Guard 1 and 2 are DeBERTa encoders with a classifier, no Llama decoders: not here.
"""


def page() -> str:
    """The whole page."""
    return _HEAD + _models() + _WEIGHTS + _bytes() + _NOTES + _notes() + _NOT_HERE


def _models() -> str:
    head = ("name", "parameters", "active", "context", "prompts", "tokenizer", "weights", "licence", "source")
    return "\n" + _table(head, map(_model, CATALOG))


def _model(entry: CatalogEntry) -> tuple[str, ...]:
    total, active = n_parameters(entry.config), n_active(entry.config)
    return (
        entry.name,
        billions(total),
        billions(active) if active < total else "all",
        f"{entry.config.context_length:,}",
        entry.chat_format + (", infilling" if entry.infill else ""),
        entry.tokenizer or "-",
        entry.weights,
        entry.licence,
        f"`{entry.source.text}`" if entry.source else "not published",
    )


def _bytes() -> str:
    """One row for each shape, under the name of the first model that has it."""
    rows, seen = [], set()
    for entry in CATALOG:
        if entry.config not in seen:
            seen.add(entry.config)
            rows.append(_row(entry))
    head = ("shape of", *FORMATS_SHOWN, "cache per token", "cache at", "", "per image")
    return "\n" + _table(head, rows)


def _row(entry: CatalogEntry) -> tuple[str, ...]:
    cfg = entry.config
    context = min(cfg.context_length, 131072)
    image = kv_bytes(cfg, 1, n_images=1) - kv_bytes(cfg, 1)
    return (
        entry.name,
        *(size(weight_bytes(cfg, form)) for form in FORMATS_SHOWN),
        size(kv_bytes(cfg, 1)),
        f"{context:,}",
        size(kv_bytes(cfg, context)),
        size(image) if image else "-",
    )


def _notes() -> str:
    released = [f"- {entry.name}: {entry.note}.\n" for entry in CATALOG if entry.note]
    announced = [
        f"- {m.name} ({m.date}; about {billions(m.parameters)}, {billions(m.active_parameters)} active, "
        f"{m.n_experts} experts): {m.note}.\n"
        for m in ANNOUNCED
    ]
    return "\n" + "".join(announced + released)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
