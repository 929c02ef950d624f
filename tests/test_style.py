"""Habits that can be checked: length of functions and files, where settings are read, what is public."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import puna

ROOT = Path(puna.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in FILES]

LONGEST_FUNCTION = 60  # lines
LONGEST_FILE = 400

# Exceptions, with their size. The list only shrinks: an entry that is no longer needed, or too large, fails.
LONG_FUNCTIONS: dict[str, int] = {}
LONG_FILES: dict[str, int] = {}

# Where whatever went wrong in a thread or a request must reach those who wait for it.
LAST_RESORTS = {"engine/bridge.py", "engine/engine.py"}

REPOSITORY = ROOT.parent
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:work|root|opt)/")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            name = f"{path.relative_to(ROOT)}:{node.name}"
            limit = LONG_FUNCTIONS.get(name, LONGEST_FUNCTION)
            assert length <= limit, f"{name} has {length} lines, at most {limit}"
            if name in LONG_FUNCTIONS:
                assert length > LONGEST_FUNCTION, f"take {name} off the list of long functions"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_files_are_short(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    length = len(path.read_text(encoding="utf-8").splitlines())
    limit = LONG_FILES.get(name, LONGEST_FILE)
    assert length <= limit, f"{name} has {length} lines, at most {limit}"
    assert name not in LONG_FILES or length > LONGEST_FILE, f"take {name} off the list of long files"


def test_the_lists_name_what_exists() -> None:
    names = {name.partition(":")[0] for name in (*LONG_FUNCTIONS, *LONG_FILES)}
    assert names <= set(IDS)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_environment_is_read_in_one_file(path: Path) -> None:
    if path.name == "env.py":
        return
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in ("environ", "environb", "getenv", "putenv"), f"{path}:{node.lineno}"
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            assert not {alias.name for alias in node.names} & {"environ", "getenv"}, f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_frozen_means_frozen_and_errors_have_names(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute) and node.attr == "__setattr__":
            assert not (isinstance(node.value, ast.Name) and node.value.id == "object"), (
                f"{path}:{node.lineno}"
            )
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            broad = caught in ("everything", "Exception", "BaseException")
            assert not broad or path.relative_to(ROOT).as_posix() in LAST_RESORTS, f"{path}:{node.lineno}"


def test_public_names_are_exactly_all() -> None:
    assert set(puna.__all__) == set(puna._HOMES) | {"__version__"}
    assert dir(puna) == sorted(puna.__all__)
    for name, home in puna._HOMES.items():
        assert getattr(puna, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = puna.nothing


@pytest.mark.parametrize("folder", ["puna", "tests", "csrc", "docs", "examples"])
def test_no_path_of_a_machine_is_committed(folder: str) -> None:
    for path in (REPOSITORY / folder).rglob("*"):
        if path.suffix in {".py", ".cpp", ".h", ".md", ".json", ".toml", ".txt", ".sh"}:
            found = MACHINE_PATHS.search(path.read_text(encoding="utf-8", errors="replace"))
            assert found is None, f"{path}: {found[0] if found else ''}"
