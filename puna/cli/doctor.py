"""Check this machine: versions, CPU target, memory, the model store, and what is missing, with the remedy.

The exit code is 1 if something is missing that Puna needs.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Mapping
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import puna
from puna.cli.common import add_json, print_facts, print_json, size

HELP = "check this machine, and say what is missing"

PACKAGES = (
    "numpy",
    "tokenizers",
    "jinja2",
    "rich",
    "prompt_toolkit",
    "platformdirs",
    "huggingface_hub",
)
_BUILD = "install a C++ compiler and CMake, then run `pip install .` in Puna's folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    report: dict[str, Any] = {
        "puna": puna.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": _cpu(),
        "memory": memory(),
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


def _cpu() -> dict[str, Any]:
    """What the compiled part says of the processor; `native` is False where it is not built."""
    cores = {"logical_cores": os.cpu_count()}
    try:
        native = import_module("puna.runtime.native")
    except ImportError:
        return {**cores, "native": False}
    return {**cores, "native": True, **native.cpu_info()}


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
            **{name.replace("_", " "): _text(value) for name, value in report["cpu"].items()},
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
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
