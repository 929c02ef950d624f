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

    def scan(self, block: Block) -> Sequence[Finding]:
        """Findings whose places count from the text's beginning; none for languages it does not know.

        Raises BadInput where its tool is not installed, WorkFailed where the tool fails: what could not be
        judged is never called harmless.
        """
        ...


def scan(text: str, scanner: CodeScanner | None = None) -> list[Finding]:
    """Findings in the text's code blocks, in their order; by Bandit where no scanner is given."""
    blocks = list(code_blocks(text))
    scanner = scanner or Bandit()
    return sorted(found for block in blocks for found in scanner.scan(block))


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

    seconds: float = 20.0  # for one block
    severities: tuple[str, ...] = ("MEDIUM", "HIGH")  # LOW has every `assert` and `import subprocess`

    def scan(self, block: Block) -> Sequence[Finding]:
        """Blocks that do not say their language are Python if they parse as such."""
        if block.language not in _PYTHON or not block.code.strip():
            return []
        if find_spec("bandit") is None:
            raise BadInput("the scanner `code` needs bandit, which is not installed: pip install bandit")
        report = self._report(block.code)
        if report.get("errors"):
            if not block.language:
                return []
            end = block.start + len(block.code)
            return [Finding(block.start, end, KIND, "not-judged", "Python that bandit cannot read")]
        lines = [0, *(found.end() for found in re.finditer("\n", block.code))]
        return [
            _finding(block, lines, row)
            for row in report["results"]
            if row["issue_severity"] in self.severities
        ]

    def _report(self, code: str) -> dict[str, Any]:
        # -I: neither this folder nor PYTHONPATH can put another module in bandit's place
        # and `# nosec` in a model's answer silences nothing
        command = [sys.executable, "-I", "-m", "bandit", "-q", "--ignore-nosec", "-f", "json", "-"]
        try:
            with tempfile.TemporaryDirectory() as empty:  # bandit reads settings of the current folder
                done = subprocess.run(
                    command, input=code.encode("utf-8", "replace"), capture_output=True, timeout=self.seconds,
                    cwd=empty, env={"PYTHONIOENCODING": "utf-8"}, check=False,
                )  # fmt: skip
            report = json.loads(done.stdout)
        except subprocess.TimeoutExpired:
            raise WorkFailed(
                f"bandit took more than {self.seconds:g} s for a block of {len(code):,} characters"
            ) from None
        except ValueError:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise WorkFailed(f"bandit gave no report: {said[-1] if said else 'and no reason'}") from None
        found: dict[str, Any] = report
        return found


def _finding(block: Block, lines: Sequence[int], row: dict[str, Any]) -> Finding:
    """bandit counts lines from 1 and bytes of a line from 0."""
    first, last = row["line_number"] - 1, row["line_range"][-1] - 1
    line = block.code[lines[first] :].split("\n", 1)[0]
    column = len(line.encode()[: row["col_offset"]].decode("utf-8", "ignore"))
    start = lines[first] + column
    end = lines[last] + len(block.code[lines[last] :].split("\n", 1)[0])
    detail = f"{row['issue_text']} ({row['test_id']}, severity {row['issue_severity'].lower()})"
    return Finding(
        block.start + start, block.start + max(end, start), KIND, row["test_name"].replace("_", "-"), detail
    )
