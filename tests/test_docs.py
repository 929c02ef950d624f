"""Every command and program that README.md and docs/ show: blocks run, commands in sentences and consoles
parse (tests/server/test_guide.py runs some of the latter)."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from puna.cli.main import find
from puna.weights import store

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(puna [^`]+)`")
BIN = Path(sys.executable).parent
SHOWN = "http://127.0.0.1:8000"  # where the server of the pages listens


def blocks(language: str) -> list[str]:
    return [
        text for page in PAGES for kind, text in BLOCK.findall(page.read_text("utf-8")) if kind == language
    ]


def shell_commands() -> list[str]:
    """Lines of the blocks, without comments, that can run anywhere. What `make` does is what runs this test;
    another engine takes minutes to install (`make test-peers` does)."""
    lines = [line.partition("  #")[0].strip() for text in blocks("sh") for line in text.splitlines()]
    return [
        line
        for line in lines
        if line and not line.startswith("make ") and not re.search(r"\bpeer|vllm", line)
    ]


def inline_commands() -> list[str]:
    found = {text for page in PAGES for text in INLINE.findall(page.read_text("utf-8"))}
    shown = [line for kind in ("sh", "console") for text in blocks(kind) for line in text.splitlines()]
    lines = {line[start.end() :] for line in shown if (start := re.match(r"(sudo .*\s)?(?=puna )", line))}
    return sorted(found | {line.partition("  #")[0].strip() for line in lines})


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    if store.find("smollm2") is None:
        pytest.skip("needs the model: puna pull smollm2")
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def at_a_server(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], str]]:
    """Puts the address of a running server in the place of the one that the pages show."""
    begun: list[tuple[subprocess.Popen[str], str]] = []

    def url() -> str:
        if not begun:
            home = {**environment, "PUNA_HOME": str(tmp_path_factory.mktemp("home"))}
            model = str(store.resolve("smollm2"))
            command = [sys.executable, "-m", "puna", "serve", f"smollm2={model}", "--port", "0"]
            server = subprocess.Popen(command, env=home, stderr=subprocess.PIPE, text=True)
            assert server.stderr is not None
            said = iter(server.stderr.readline, "")
            found = next(filter(None, (re.search(r"(http://127.0.0.1:\d+)/", line) for line in said)), None)
            assert found, "the server did not start"
            begun.append((server, found[1]))
        return begun[0][1]

    yield lambda text: text.replace(SHOWN, url()) if SHOWN in text else text
    for server, _ in begun:
        server.terminate()
        server.communicate(timeout=60)


def run(command: list[str], tmp_path: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, input="/quit\n", capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", shell_commands())
def test_a_shown_command_runs(
    command: str, tmp_path: Path, environment: dict[str, str], at_a_server: Callable[[str], str]
) -> None:
    out = run(["bash", "-c", at_a_server(command)], tmp_path, environment)
    assert out or command == "puna chat"  # which is told to quit at once


@pytest.mark.parametrize("program", blocks("python"), ids=lambda text: text.splitlines()[0])
def test_a_shown_program_runs(
    program: str, tmp_path: Path, environment: dict[str, str], at_a_server: Callable[[str], str]
) -> None:
    assert run([sys.executable, "-c", at_a_server(program)], tmp_path, environment)


@pytest.mark.parametrize("command", inline_commands())
def test_a_mentioned_command_parses(command: str) -> None:
    _, *argv = shlex.split(re.sub(r"[\[\]…]", "", command))
    module, parser, rest = find(argv)
    if rest:
        args = parser.parse(rest)
        if check := getattr(module, "check_usage", None):  # of options that need others
            check(args)


def test_groups_that_make_installs_exist() -> None:
    groups = set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"])
    asked = set(re.findall(r"--group (\w+)", (ROOT / "Makefile").read_text("utf-8")))
    assert asked
    assert asked <= groups
