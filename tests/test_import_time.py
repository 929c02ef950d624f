"""What `import puna` and `puna --help` load: by name, not by the clock, which is only printed."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

HEAVY = {
    "asyncio", "huggingface_hub", "jinja2", "numpy", "platformdirs", "prompt_toolkit", "rich", "tokenizers",
    "torch", "transformers", "PIL", "puna._native", "sqlalchemy", "alembic",
}  # fmt: skip

RUNS = {
    "import puna": "import puna",
    "puna --help": "from puna.cli.main import main; main(['--help'])",
    "puna --version": "from puna.cli.main import main; main(['--version'])",
    "puna pull --help": "from puna.cli.main import main; main(['pull', '--help'])",
}


@pytest.mark.parametrize("name", RUNS)
def test_nothing_heavy_is_imported(name: str) -> None:
    code = f"{RUNS[name]}\nimport sys; print('modules:', *sys.modules)"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    print(f"{name}: {(time.perf_counter() - start) * 1000:.0f} ms, with the start of Python")
    loaded = set(done.stdout.rpartition("modules:")[2].split())
    assert loaded & HEAVY == set()
