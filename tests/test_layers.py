"""Who may import whom (the table of DESIGN section 3); imports inside functions count as well."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import puna

ROOT = Path(puna.__file__).parent

# layer -> what it may import of puna beside itself; a layer is a package or a file directly under puna/
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "env": {"core"},
    "model": {"core"},
    "images": {"core", "model"},
    "ops": {"core"},
    "weights": {"core", "model", "env", "_native"},
    "text": {"core"},
    "license": {"core", "model"},
    "economics": {"core", "model"},
    "brief": {"core", "model", "license", "economics"},
    "safety": {"core", "env", "text"},
    "runtime": {"core", "model", "ops", "weights", "env", "_native"},
    "engine": {"core", "text"},
    "server": {"core", "env", "engine", "text", "safety", "license", "economics"},
    "train": {"core", "model", "ops", "weights", "text", "license", "economics"},
    "evals": {"core", "text", "llm"},
    "loadtest": {"core"},
    "assistant": set(),
}
ANYTHING = {"llm", "cli", "bench", "__init__", "__main__"}  # compose the rest, lazily

# Pure files: integers only, so that their tests need no model.
PURE = {
    "engine/scheduler.py": {"numpy", "puna.runtime", "puna.weights"},
    "engine/blocks.py": {"numpy", "puna.runtime", "puna.weights"},
    "engine/prefix.py": {"numpy", "puna.runtime", "puna.weights"},
    "core.py": set(),
}
TORCH_AT_HOME = ("ops/torch_", "runtime/torch", "bench/torch_", "safety/classifiers/torch_", "train/")
FILES = sorted(ROOT.rglob("*.py"))


def layer_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[int, str]]:
    """Line and absolute name of every module that a file imports, without those for type checkers only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[tuple[int, str]] = []
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += [child for child in node.body if _imports_puna(child)] + node.orelse
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import by the full name"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
        pending += ast.iter_child_nodes(node)
    return found


def _imports_puna(node: ast.stmt) -> bool:
    """Types of our own packages obey the layers; numpy and torch as types cost nothing."""
    return isinstance(node, ast.ImportFrom) and (node.module or "").startswith("puna")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    layer = layer_of(path)
    if layer in ANYTHING:
        return
    assert layer in MAY_IMPORT, f"{layer} is not in the table: add it to the table and to the design"
    allowed = MAY_IMPORT[layer] | {layer}
    for line, name in imports(path):
        if name == "puna" or name.startswith("puna."):
            target = name.split(".")[1] if "." in name else "puna"
            assert target in allowed, f"{path}:{line}: {layer} must not import puna.{target}"


@pytest.mark.parametrize("name", PURE)
def test_pure_files_stay_pure(name: str) -> None:
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{name} is not written")
    for line, module in imports(path):
        for forbidden in PURE[name]:
            assert not f"{module}.".startswith(f"{forbidden}."), f"{path}:{line}: imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_torch_stays_in_its_files(path: Path) -> None:
    if str(path.relative_to(ROOT)).startswith(TORCH_AT_HOME):
        return
    for line, module in imports(path):
        assert module.split(".")[0] != "torch", f"{path}:{line}: torch is an extra"
