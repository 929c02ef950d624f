"""Code in answers: a protocol for tools that judge it, and bandit as one of them.

Only code between fences is looked at (CommonMark: three backticks or tildes and more), as answers have it.
bandit judges Python by its syntax tree and runs none of it. It runs in a process of its own, with a time
limit and without this process's environment; it opens no connection.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from puna.core import BadInput, WorkFailed
from puna.safety.scanners.finding import Finding

KIND = "code"
_FENCE = re.compile(r"^( {0,3})(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n`]*$", re.MULTILINE)
_PYTHON = ("python", "python3", "py", "")


@dataclass(frozen=True, slots=True)
class Block:
    """Code between fences."""

    start: int  # its first character in the text
    code: str
    language: str  # as the fence says, in small letters; "" where it says nothing


class CodeScanner(Protocol):
    """Whatever judges code: a linter, a rule engine."""

    def scan(self, blocks: Sequence[Block]) -> Sequence[Finding]:
        """Findings whose places count from the text's beginning; none for languages it does not know.

        Raises BadInput where its tool is not installed, WorkFailed where the tool fails: what could not be
        judged is never called harmless.
        """
        ...


def scan(text: str, scanner: CodeScanner | None = None) -> list[Finding]:
    """Findings in the text's code blocks, in their order; by Bandit where no scanner is given."""
    return sorted((scanner or Bandit()).scan(list(code_blocks(text))))


def code_blocks(text: str) -> Iterator[Block]:
    """A block that nothing closes goes to the end of the text, as readers show it."""
    at = 0
    while opening := _FENCE.search(text, at):
        mark = opening[2]
        closing = re.compile(rf"^ {{0,3}}{re.escape(mark[0])}{{{len(mark)},}}[ \t]*$", re.MULTILINE)
        start = min(opening.end() + 1, len(text))
        closed = closing.search(text, start)
        end = closed.start() if closed else len(text)
        yield Block(start, text[start:end], opening[3].lower())
        at = closed.end() if closed else len(text)


@dataclass(frozen=True, slots=True)
class Bandit:
    """Python by bandit (Apache-2.0, PyCQA)."""

    seconds: float = 20.0  # for all blocks of a text
    severities: tuple[str, ...] = ("MEDIUM", "HIGH")  # LOW has every `assert` and `import subprocess`

    def scan(self, blocks: Sequence[Block]) -> Sequence[Finding]:
        """Blocks that do not say their language are Python if they parse as such."""
        judged = [block for block in blocks if block.language in _PYTHON and block.code.strip()]
        if not judged:
            return []
        if find_spec("bandit") is None:
            raise BadInput("the scanner `code` needs bandit, which is not installed: pip install bandit")
        report = self._report(judged)
        unread = {_number(row) for row in report["errors"]}
        found = [
            Finding(
                block.start,
                block.start + len(block.code),
                KIND,
                "not-judged",
                "Python that bandit cannot read",
            )
            for i, block in enumerate(judged)
            if i in unread and block.language
        ]
        for row in report["results"]:
            if row["issue_severity"] in self.severities:
                found.append(_finding(judged[_number(row)], row))
        return found

    def _report(self, blocks: Sequence[Block]) -> dict[str, Any]:
        """One process for all of them: it takes longer to start than to judge."""
        try:
            with tempfile.TemporaryDirectory() as code, tempfile.TemporaryDirectory() as empty:
                for i, block in enumerate(blocks):
                    Path(code, f"{i}.py").write_bytes(block.code.encode("utf-8", "replace"))
                # -I: neither this folder nor PYTHONPATH can put another module in bandit's place
                # and `# nosec` in a model's answer silences nothing
                command = [
                    sys.executable,
                    "-I",
                    "-m",
                    "bandit",
                    "-q",
                    "--ignore-nosec",
                    "-f",
                    "json",
                    "-r",
                    code,
                ]
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, capture_output=True, timeout=self.seconds,
                    cwd=empty, env={"PYTHONIOENCODING": "utf-8"}, check=False,
                )  # fmt: skip
            report = json.loads(done.stdout)
        except subprocess.TimeoutExpired:
            n = sum(len(block.code) for block in blocks)
            raise WorkFailed(
                f"bandit took more than {self.seconds:g} s for {n:,} characters of code"
            ) from None
        except ValueError:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise WorkFailed(f"bandit gave no report: {said[-1] if said else 'and no reason'}") from None
        found: dict[str, Any] = report
        return found


def _number(row: dict[str, Any]) -> int:
    """Of the block that a row of the report is about."""
    return int(Path(row["filename"]).stem)


def _finding(block: Block, row: dict[str, Any]) -> Finding:
    """bandit counts lines from 1 and bytes of a line from 0."""
    lines = [0, *(found.end() for found in re.finditer("\n", block.code))]
    first, last = row["line_number"] - 1, row["line_range"][-1] - 1
    line = block.code[lines[first] :].split("\n", 1)[0]
    column = len(line.encode()[: row["col_offset"]].decode("utf-8", "ignore"))
    start = lines[first] + column
    end = lines[last] + len(block.code[lines[last] :].split("\n", 1)[0])
    detail = f"{row['issue_text']} ({row['test_id']}, severity {row['issue_severity'].lower()})"
    return Finding(
        block.start + start, block.start + max(end, start), KIND, row["test_name"].replace("_", "-"), detail
    )
