"""Markdown on a terminal while it is being written: finished blocks are printed once, the last is repainted.

Only the lines that changed are written again, so that nothing flickers, and never a line that has scrolled
out of reach. A block is finished when the parser has begun the next one.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from itertools import pairwise
from time import monotonic
from typing import ClassVar

from markdown_it import MarkdownIt
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement
from rich.syntax import Syntax
from rich.theme import Theme

from puna.cli.terminal import harmless

_WIDEST = 100  # columns of text; longer lines are hard to read
_PAUSE = 0.04  # seconds between repaints, at least
_SHARE = 0.2  # of the time that painting may take, so that the engine gets the interpreter

_THEME = Theme({"markdown.code": "bold cyan", "markdown.h1": "bold underline", "markdown.h2": "bold"})
_STYLES = re.compile(r"\x1b\[[0-9;]*m")
_PADDING = re.compile(r" +((?:\x1b\[[0-9;]*m)*)$")


class _PlainCode(CodeBlock):
    """Highlighted in the terminal's own colours, on its own background, at the left edge: easy to copy."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Syntax(str(self.text).rstrip(), self.lexer_name, theme="ansi_dark", word_wrap=True)


class _PlainHeading(Heading):
    """At the left edge, without a box."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _Markdown(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "fence": _PlainCode,
        "code_block": _PlainCode,
        "heading_open": _PlainHeading,
    }


class Paper:
    """Renders blocks of Markdown to lines for the terminal that `console` writes to."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._parser = MarkdownIt().enable("table").enable("strikethrough")

    @property
    def width(self) -> int:
        return min(self.console.width, _WIDEST)

    def lines(self, markdown: str) -> list[str]:
        """The block as it looks, one string with its styles for each row; no trailing blanks."""
        page = io.StringIO()
        Console(
            file=page,
            width=self.width,
            color_system=self.console.color_system,  # type: ignore[arg-type]  # one name, two types in rich
            no_color=self.console.no_color,
            force_terminal=True,
            legacy_windows=False,
            theme=_THEME,
        ).print(_Markdown(markdown, hyperlinks=False))
        rows = [_PADDING.sub(r"\1", row) for row in page.getvalue().split("\n")]
        while rows and not _STYLES.sub("", rows[-1]).strip():
            rows.pop()
        while rows and not _STYLES.sub("", rows[0]).strip():
            del rows[0]
        return rows

    def split(self, text: str) -> list[str]:
        """Cut Markdown into its top-level blocks."""
        starts = [
            token.map[0]
            for token in self._parser.parse(text)
            if token.level == 0 and token.map is not None and token.nesting >= 0
        ]
        if not starts:
            return [text]
        rows = re.findall(r".*\n|.+", text)  # as the parser counts lines: splitlines() knows more kinds
        return ["".join(rows[a:b]) for a, b in pairwise([0, *starts[1:], len(rows)])]


class MarkdownView:
    """Shows the text that `add` is given. `finish` at the end, whatever happened."""

    def __init__(self, paper: Paper, write: Callable[[str], None]) -> None:
        self._paper = paper
        self._painter = _Painter(paper.console, write)
        self._tail = ""  # of the text: the block that is not finished
        self._is_first = True
        self._next_paint = 0.0

    def wait(self) -> None:
        """Show that something is on its way."""
        self._painter.paint(["…"])

    def add(self, text: str) -> None:
        self._tail += harmless(text)
        now = monotonic()
        if now >= self._next_paint:
            self._paint(is_last=False)
            took = monotonic() - now
            self._next_paint = now + max(_PAUSE, took / _SHARE)

    def finish(self) -> None:
        self._paint(is_last=True)

    def _paint(self, *, is_last: bool) -> None:
        # a line that is not complete may still become something else: "```x" code, or "```x```" plain text
        n_complete = len(self._tail) if is_last else self._tail.rfind("\n") + 1
        *finished, last = self._paper.split(self._tail[:n_complete])
        self._tail = last + self._tail[n_complete:]
        if is_last:
            finished.append(self._tail)
            self._tail = ""
        for block in finished:
            self._painter.paint(self._rows(block))
            self._is_first &= not self._painter.commit()
        if not is_last:
            self._painter.paint(self._rows(self._tail))

    def _rows(self, block: str) -> list[str]:
        """Lines of a block, after an empty one unless nothing is above it."""
        rows = self._paper.lines(block)
        return ["", *rows] if rows and not self._is_first else rows


class _Painter:
    """Keeps the last lines on the terminal equal to those it is given. The cursor waits at their end."""

    def __init__(self, console: Console, write: Callable[[str], None]) -> None:
        self._console = console
        self._write = write
        self._shown: list[str] = []  # lines that can be changed still
        self._n_gone = 0  # lines of the same block above them, which cannot

    def paint(self, lines: list[str]) -> None:
        """Replace the lines shown since the last commit."""
        lines = lines[self._n_gone :]
        same = 0
        while same < min(len(lines), len(self._shown)) and lines[same] == self._shown[same]:
            same += 1
        if same == len(lines) == len(self._shown):
            return
        if same == len(lines) and same:
            same -= 1  # the last one once more, so that the cursor waits at its end
        self._write(self._back_to(same) + self._replace(lines[same:], len(self._shown) - same))
        self._shown = lines
        self._let_go()

    def commit(self) -> bool:
        """Leave the lines as they are, the cursor below them; whether there were any."""
        was_any = bool(self._shown) or self._n_gone > 0
        if self._shown:
            self._write("\r\n")
        self._shown, self._n_gone = [], 0
        return was_any

    def _back_to(self, i: int) -> str:
        """Move to the beginning of line i of those shown, or of a new one below them."""
        if self._shown and i == len(self._shown):
            return "\r\n"
        # a terminal made narrower has wrapped the lines that were wider
        width = self._console.width
        n_rows = sum(max(1, -(-cell_len(_STYLES.sub("", line)) // width)) for line in self._shown[i:])
        return f"\r\x1b[{n_rows - 1}A" if n_rows > 1 else "\r"

    def _replace(self, lines: list[str], n_old: int) -> str:
        """Write lines over n_old others, clearing each just before it is written, and what is left below."""
        # not more than needed: tmux keeps what a clearing of the whole screen takes away
        clear_last = "\x1b[J" if n_old > max(1, len(lines)) else "\x1b[K"
        *upper, last = lines or [""]
        return "".join(f"\x1b[K{line}\r\n" for line in upper) + clear_last + last

    def _let_go(self) -> None:
        """Lines near the upper edge may scroll away before the next paint: they stay as they are."""
        n_reachable = max(1, self._console.height - 2)
        n_gone = max(0, len(self._shown) - n_reachable)
        self._n_gone += n_gone
        del self._shown[:n_gone]
