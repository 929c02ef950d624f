"""The whole house at once: two tenants, a price list, a guard, 500 requests by the load test; then usage,
margin and audit beside what the clients counted themselves.

The guard has forced logits, as Llama Guard's weights are gated: it calls every text with a double quote
unsafe, which some of the answers have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from safety.forced import write_forced_guard
from serving.figure import Figure
from serving.process import served

from puna.weights.store import resolve

_REQUESTS = 500
_HOURS, _RATE = 3, "0.25"  # that the machine is paid for, dollars an hour
_POLICIES = """
[[policy]]
name = "strict"
input = ["guard:guard"]
output = ["guard:guard"]
window = 80
overlap = 40
[[policy]]
name = "input"
input = ["guard:guard"]
"""
_PRICES = """
[[price]]
model = "NAME"
input = 0.0503
cached_input = 0.0101
output = 0.0807
"""
_IN, _CACHED, _OUT = 503, 101, 807  # the same in tenths of a nano-dollar for a token
_TENANTS = {"acme": "strict", "zoo": "input"}


@dataclass
class Shop:
    """A home with keys, prices and policies, and the commands that read its ledger."""

    home: Path

    @property
    def database(self) -> str:
        return f"sqlite:///{self.home}/ledger.db"

    def puna(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "puna", *arguments]
        environment = {**os.environ, "PUNA_HOME": str(self.home)}
        return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout

    def ask(self, *arguments: str) -> Any:
        return json.loads(self.puna(*arguments, "--json"))

    def key(self, tenant: str, policy: str) -> str:
        flags = ("--tenant", tenant, "--policy", policy, "--database", self.database)
        return str(self.ask("keys", "create", *flags)["key"])


def guarded(model: str, home: Path) -> list[Figure]:
    """Differences between what the clients counted and what the server says; all must be 0."""
    shop = Shop(home)
    guard = write_forced_guard(home / "guard.gguf", mark='"')
    (home / "policies.toml").write_text(_POLICIES)
    name = resolve(model).stem
    (home / "prices.toml").write_text(_PRICES.replace("NAME", name))
    keys = {tenant: shop.key(tenant, policy) for tenant, policy in _TENANTS.items()}
    flags = ("--require-keys", "--prices", str(home / "prices.toml"), "--safety", str(home / "policies.toml"))
    with served(model, home, *flags, others=[f"guard={guard}"]) as server:
        load = ("--concurrency", "16", "--requests", str(_REQUESTS), "--model", name)
        sizes = ("--prompt-tokens", "60", "--output-tokens", "48", "--prefix-share", "0.3")
        named = [f"--key={tenant}={key}" for tenant, key in keys.items()]
        shop.puna("loadtest", server.url, *load, *sizes, *named, "--output", str(home / "load.json"))
    rows = json.loads((home / "load.json").read_text())["each"]
    return [*_answers(rows), *_usage(shop, rows), *_margin(shop, rows), *_audit(shop, rows)]


def _cost(row: dict[str, Any]) -> int:
    """Nano-dollars of one answer, rounded once, halves up: by our own arithmetic."""
    n_cached = row["cached_tokens"]
    tenths = (row["prompt_tokens"] - n_cached) * _IN + n_cached * _CACHED + row["output_tokens"] * _OUT
    return int(tenths + 5) // 10


def _answers(rows: list[dict[str, Any]]) -> list[Figure]:
    blocked = sum(row["finish_reason"] == "content_filter" for row in rows)
    return [
        Figure("requests that were answered", sum(not row["error"] for row in rows), _REQUESTS, ""),
        Figure("answers that the guard ended", blocked, 1, ""),
    ]


def _none(name: str, n_wrong: float) -> Figure:
    return Figure(name, n_wrong, 0, "", is_least=False)


def _usage(shop: Shop, rows: list[dict[str, Any]]) -> list[Figure]:
    found = shop.ask("usage", "--database", shop.database, "--by", "tenant")["usage"]
    said = {row["tenant"]: row for row in found}
    n_wrong = 0
    for tenant in _TENANTS:
        own = [row for row in rows if row["tenant"] == tenant]
        counted = {
            "requests": len(own),
            "prompt_tokens": sum(row["prompt_tokens"] for row in own),
            "cached_tokens": sum(row["cached_tokens"] for row in own),
            "output_tokens": sum(row["output_tokens"] for row in own),
            "cost_nano": sum(map(_cost, own)),
        }
        n_wrong += sum(said[tenant][name] != value for name, value in counted.items())
    return [_none("sums of `puna usage` that differ from the clients'", n_wrong)]


def _margin(shop: Shop, rows: list[dict[str, Any]]) -> list[Figure]:
    csv = shop.home / "usage.csv"
    shop.puna("usage", "--database", shop.database, "--csv", str(csv))
    prices = ("--price-list", str(shop.home / "prices.toml"))
    found = shop.ask("cost", "margin", str(csv), "--hours", str(_HOURS), "--rate", _RATE, *prices)
    revenue = {line["tenant"]: line["revenue"] for line in found["lines"]}
    counted = Counter(dict.fromkeys(_TENANTS, 0))
    for row in rows:
        counted[row["tenant"]] += _cost(row)
    paid = int(Decimal(_RATE) * _HOURS * 10**9)
    return [
        _none("nano-dollars of revenue that differ", sum(abs(revenue[t] - counted[t]) for t in _TENANTS)),
        _none("nano-dollars of the machine's cost that differ", abs(found["cost"] - paid)),
        _none("calls that cost otherwise by the price list", found["repriced"]),
    ]


def _audit(shop: Shop, rows: list[dict[str, Any]]) -> list[Figure]:
    found = shop.ask("safety", "audit", "--database", shop.database)["counts"]
    said = {(row["tenant"], row["policy"], row["action"]): row["requests"] for row in found}
    counted = Counter(
        (
            row["tenant"],
            _TENANTS[row["tenant"]],
            "blocked" if row["finish_reason"] == "content_filter" else "passed",
        )
        for row in rows
    )
    wrong = sum(abs(said.get(key, 0) - counted.get(key, 0)) for key in {*said, *counted})
    return [_none("audits that differ from how the answers ended", wrong)]
