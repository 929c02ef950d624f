"""The frame: commands, options, exit codes, pipes."""

from __future__ import annotations

import ast
import errno
import os
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import puna
from puna.cli import main as frame
from puna.cli import pull
from puna.cli.main import commands, main
from puna.core import DownloadFailed


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_every_command_has_the_three_names_and_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert {"pull", "list", "show", "rm", "doctor"} <= set(commands())
    for name, text in commands().items():
        module = import_module(f"puna.cli.{name}")
        assert text == module.HELP
        assert callable(module.add_arguments)
        assert callable(module.run)
        assert f"  {name}" in overview
        assert text in overview
        assert main([name, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: puna {name}")


def test_every_file_that_runs_is_a_command() -> None:
    for path in Path(frame.__file__).parent.glob("*.py"):
        functions = {
            node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)
        }
        assert ({"run", "add_arguments"} <= functions) == (path.stem in commands()), path


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"puna {puna.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["lits"], "there is no command 'lits'; did you mean 'list'?"),
        (["zzzzzz"], "there is no command 'zzzzzz'; see `puna --help`"),
        (["--versoin"], "there is no command '--versoin'; did you mean '--version'?"),
        (["pull", "--nmae", "x", "y"], "`puna pull` has no option --nmae; did you mean '--name'?"),
        (["pull", "--nam=x", "y"], "`puna pull` has no option --nam; did you mean '--name'?"),
        (["pull"], "the following arguments are required: MODEL; see `puna pull --help`"),
        (["pull", "a", "b"], "'b' is one argument too many; see `puna pull --help`"),
        (["pull", "--name"], "argument --name: expected one argument; see `puna pull --help`"),
        (["rm"], "name the models to remove, or use --partial; `puna list` shows what is here"),
        (["rm", "smollm2"], "the store has no model 'smollm2'; `puna list` shows what is here"),
        (["pull", "smolm2"], "there is no model 'smolm2'; did you mean 'smollm2'?"),
        (["show", "./x.gguf"], f"there is no file or folder {Path.cwd()}/x.gguf"),
    ],
)
def test_bad_usage_is_one_sentence(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"puna: {sentence}\n"


def test_a_home_that_is_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for home in ("file", "file/below"):
        monkeypatch.setenv("PUNA_HOME", str(tmp_path / home))
        assert main(["list"]) == 2
        said = capsys.readouterr()
        assert said.err.startswith(f"puna: PUNA_HOME must be a folder, got '{tmp_path / home}'")
        assert (said.out, said.err.count("\n")) == ("", 1)


def test_after_two_dashes_everything_is_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "--", "--name"]) == 2
    assert capsys.readouterr().err.startswith("puna: there is no model '--name'")


def test_no_command_shows_the_help_and_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: puna COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (DownloadFailed("the network is down"), 1, "puna: the network is down\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "puna: /x: Permission denied\n"),
        (KeyboardInterrupt(), 130, "\npuna: interrupted\n"),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException,
    code: int,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr(pull, "run", fail)
    assert main(["pull", "x"]) == code
    assert capsys.readouterr() == ("", sentence)


# Ctrl-C while the command is imported, as the script of [project.scripts] and `python -m puna` begin it
INTERRUPTED_IMPORT = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "puna.cli.main":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
"""
SCRIPT = "from puna.__main__ import start\nsys.exit(start())"
MODULE = "import runpy\nrunpy.run_module('puna', run_name='__main__')"


@pytest.mark.parametrize("begin", [SCRIPT, MODULE])
def test_an_interrupt_before_main_is_quiet(begin: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED_IMPORT + begin, "list"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\npuna: interrupted\n")


def test_the_installed_script_begins_there() -> None:
    project = tomllib.loads((Path(puna.__file__).parent.parent / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"puna": "puna.__main__:start"}


def test_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "puna.cli.main", "list", "--catalog"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("arguments", "closed", "code", "err"),
    [
        ("list", ">&-", 0, ""),
        ("list --bogus", "2>&-", 2, ""),
        ("list", "<&- >&- 2>&-", 0, ""),
        ("run TINY - --threads 1", "<&-", 2, "puna: the prompt on stdin must not be empty\n"),
        ("chat TINY --threads 1", "<&-", 0, ""),
        ("chat TINY --threads 1", ">&-", 0, ""),
    ],
)
def test_closed_streams_are_empty(tiny: Path, arguments: str, closed: str, code: int, err: str) -> None:
    words = arguments.replace("TINY", shlex.quote(str(tiny)))
    command = f"{shlex.quote(sys.executable)} -m puna {words} {closed}"
    done = subprocess.run(["sh", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, err)


@pytest.mark.parametrize("setting", [{"PYTHONIOENCODING": "utf-8:strict"}, {"LC_ALL": "C"}])
@pytest.mark.parametrize("command", ["run", "chat"])
def test_bytes_that_are_no_text(tiny: Path, command: str, setting: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "puna", command, str(tiny), "--threads", "1"],
        input=b"hi \xff\n",
        env={**os.environ, **setting},
        capture_output=True,
    )
    what = b"prompt" if command == "run" else b"message"
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == (
        b"puna: the " + what + b" on stdin must be utf-8 text, found the byte 0xff (invalid start byte); "
        b"convert it, as iconv does\n"
    )


def test_a_terminal_without_the_letters_gets_question_marks(home: Path) -> None:
    (home / "models").mkdir(parents=True)
    record = '{"name": "x", "blob": "b", "files": [], "source": "\u30e9\u30de", "licence": null, "date": ""}'
    (home / "models" / "x.json").write_text(record, encoding="utf-8")
    command = [sys.executable, "-m", "puna.cli.main", "list"]
    done = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True)
    assert done.returncode == 0
    assert b"??" in done.stdout
