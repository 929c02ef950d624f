"""Price files of others into our rows: litellm's model_prices JSON, genai-prices' data JSON, models-dev's
api.json. Rows of other models than Llamas are left out; what a row says in a way that we cannot keep (tiers,
prices by the second) is counted and named, never approximated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

from puna.core import BadFile, BadValue, closest
from puna.economics.hardware import CURRENCY
from puna.economics.prices import Row

FORMATS = ("litellm", "genai-prices", "models-dev")
_ROUTERS = {"openrouter", "vercel", "vercel_ai_gateway", "github-models", "helicone", "kilo", "llmgateway",
            "cloudflare-ai-gateway", "nano-gpt", "requesty", "abacus", "cortecs",
            "inference", "poe"}  # fmt: skip
_MAKERS = {"llama", "meta_llama"}  # Meta's own API
_GENERATION = re.compile(
    r"(?:(?:us|eu|apac|global)\.|(?:cerebras|groq|databricks)-)?(?:meta[-.])?"
    r"llama[-_]?v?(\d)(?:[.p_-](\d)(?![\db]))?(?!\d)"
)
# what a name may say beside generation and size and still be Meta's own weights
_PLAIN = re.compile(
    r"\d*[be]?|17be|v\d|fp|fp8|fp16|bf16|int4|awq|128k|instruct|chat|it|base|hf|maas|turbo|lite|reference|"
    r"basic|versatile|instant|specdec|preview|vision|text|dynamic|fast|free|latest|tput|quantized|ai|cs|"
    r"long|reasoning|gguf|scout|maverick|original|standard|default|model|llama"
)
_SIZE = re.compile(r"(?<![\d.])(\d+)b(?![a-z0-9])")
_GUARD = re.compile(
    r"(?:meta-)?llama-?(prompt-)?guard-(\d)(?:-(\d+[bm]))?(?:-vision|-int8|-int4|-instruct|-turbo)*"
)
_NOT_PLAIN = re.compile(
    r"nemotron|hermes|distill|deepseek|tulu|sonar|-groq-|swallow|lumimaid|abliterated|uncensored|finetun"
)


@dataclass(frozen=True, slots=True)
class Imported:
    rows: tuple[Row, ...]
    skipped: tuple[str, ...]  # a sentence for each row of a Llama that was not taken


def group_of(model_id: str) -> str | None:
    """Llama-3.3-70B of any spelling of it, Llama-Guard-4-12B of a guard; None for others and derivatives."""
    text = model_id.lower()
    if "llama" not in text or _NOT_PLAIN.search(text):
        return None
    if "guard" in text:
        return _guard_of(text.rpartition("/")[2])
    found = _GENERATION.match(text.rpartition("/")[2].removeprefix("hf:"))
    if found is None or found[1] not in "234":
        return None
    rest = re.split(r"[-_:@./]+", text.rpartition("/")[2].removeprefix("hf:")[found.end() :])
    if not all(_PLAIN.fullmatch(part) for part in rest):
        return None
    for name in ("scout", "maverick"):
        if name in text:
            return f"Llama-4-{name.title()}"
    minor = found[2] if found[2] not in (None, "0") and found[1] == "3" else None
    size = _SIZE.search(text)
    if size is None or (minor is not None and int(minor) > 3):
        return None
    return f"Llama-{found[1]}{'.' + minor if minor else ''}-{size[1]}B"


def _guard_of(name: str) -> str | None:
    """The guards of Meta; "?" stands for a size that a name leaves out."""
    found = _GUARD.fullmatch(name)
    if found is None:
        return None
    kind = "Llama-Prompt-Guard" if found[1] else "Llama-Guard"
    return f"{kind}-{found[2]}-{(found[3] or '?').upper()}"


def read_foreign(text: str, form: str, source: str, fetched: date) -> Imported:
    """`source` names file and version. Raises BadFile, and BadValue for an unknown form."""
    readers = {"litellm": _litellm, "genai-prices": _genai, "models-dev": _models_dev}
    if form not in readers:
        raise BadValue(f"the form must be one of {', '.join(FORMATS)}, got {form!r}{closest(form, FORMATS)}")
    try:
        content = json.loads(text, parse_float=Decimal, parse_constant=_no_number)
    except ValueError as error:
        raise BadFile(f"{source} must be JSON: {error}") from None
    rows, skipped = [], []
    try:
        for found in readers[form](content, source, fetched):
            if isinstance(found, Row):
                rows.append(found)
            else:
                skipped.append(found)
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise BadFile(f"{source} is not a price file of {form}: {error!r}") from None
    if not rows and not skipped:
        raise BadFile(f"{source} has no price of any Llama: is it a file of {form}?")
    return Imported(tuple(rows), tuple(skipped))


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no price")


def _make(provider: str, model_id: str, group: str, prices: Mapping[str, Any], source: str, fetched: date,
          **more: Any) -> Row | str:  # fmt: skip
    amounts: list[Decimal | None] = []
    for name in ("input", "output", "cached_input", "batch_input", "batch_output"):
        value = prices.get(name)
        if isinstance(value, dict):
            return f"{provider} {model_id}: {name} is priced in tiers"
        if isinstance(value, str | bool) or (value is not None and value < 0):
            raise ValueError(f"{provider} {model_id}: {name} must be a price of 0 or more, found {value!r}")
        amounts.append(None if value is None else Decimal(value))
    is_router = provider in _ROUTERS or provider.startswith("huggingface")
    kind = "router" if is_router else "first-party" if provider in _MAKERS else "host"
    if not (amounts[0] and amounts[1]) and kind == "host":
        kind = "free"
    values = {"context": None, "valid_from": None, "valid_to": None, "url": "", "note": "", **more}
    return Row(kind, provider, model_id, group, CURRENCY, amounts[0], amounts[1], amounts[2],
               amounts[3], amounts[4], values["context"], values["valid_from"],
               values["valid_to"], source, fetched, values["url"], values["note"])  # fmt: skip


def _per_million(value: Any) -> Any:
    """litellm's dollars a token."""
    return value if value is None or isinstance(value, str | bool) else Decimal(value) * 1_000_000


def _litellm(content: Any, source: str, fetched: date) -> Iterator[Row | str]:
    names = {
        "input": "input_cost_per_token",
        "output": "output_cost_per_token",
        "cached_input": "cache_read_input_token_cost",
        "batch_input": "input_cost_per_token_batches",
        "batch_output": "output_cost_per_token_batches",
    }
    for model_id, entry in content.items():
        group = group_of(model_id)
        if group is None or entry.get("mode", "chat") not in ("chat", "completion"):
            continue
        provider = entry["litellm_provider"]
        if "input_cost_per_second" in entry or "output_cost_per_second" in entry:
            yield f"{provider} {model_id}: priced by the second"
            continue
        prices = {ours: _per_million(entry.get(theirs)) for ours, theirs in names.items()}
        end = entry.get("deprecation_date")
        context = entry.get("max_input_tokens")
        yield _make(
            provider, model_id, group, prices, source, fetched,
            context=context if isinstance(context, int) else None, url=entry.get("source", ""),
            valid_to=date.fromisoformat(end) if end else None,
        )  # fmt: skip


def _genai(content: Any, source: str, fetched: date) -> Iterator[Row | str]:
    for provider in content:
        urls = provider.get("pricing_urls") or [""]
        for model in provider["models"]:
            group = group_of(model["id"])
            if group is None:
                continue
            stages = model["prices"] if isinstance(model["prices"], list) else [{"prices": model["prices"]}]
            for stage in stages:
                constraint = stage.get("constraint") or {}
                begin = constraint.get("start_date")
                if constraint and begin is None:
                    yield f"{provider['id']} {model['id']}: priced by the time of day"
                    continue
                p = stage["prices"]
                prices = {"input": p.get("input_mtok"), "output": p.get("output_mtok"),
                          "cached_input": p.get("cache_read_mtok")}  # fmt: skip
                yield _make(
                    provider["id"], model["id"], group, prices, source, fetched,
                    context=model.get("context_window"), url=urls[0],
                    valid_from=date.fromisoformat(begin) if begin else None,
                    note="deprecated" if model.get("deprecated") else "",
                )  # fmt: skip


def _models_dev(content: Any, source: str, fetched: date) -> Iterator[Row | str]:
    for name, provider in content.items():
        for model_id, model in provider["models"].items():
            group = group_of(model_id)
            if group is None:
                continue
            p = model.get("cost") or {}
            prices = {"input": p.get("input"), "output": p.get("output"),
                      "cached_input": p.get("cache_read")}  # fmt: skip
            yield _make(
                name, model_id, group, prices, source, fetched, url=provider.get("doc", ""),
                context=(model.get("limit") or {}).get("context"), note=model.get("status") or "",
            )  # fmt: skip
