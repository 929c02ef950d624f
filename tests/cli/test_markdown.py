"""Markdown as it streams: whatever the pieces, the screen ends up as if all had come at once."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len, get_character_cell_size
from rich.console import Console

from puna.cli import markdown
from puna.cli.markdown import MarkdownView, Paper

TEXT = """# Heading

A paragraph with **bold**, `code` and [a link](http://x.y/z) that is long enough to be wrapped at the edge.
日本語のテキスト and 🦙 emoji in it.

1. first
   with more

2. second

   its paragraph
- a
  - nested

```python
def f(x):

    return "two" * x
```

| a | b |
|---|---|
| 1 | 22 |

> quoted

last line\
"""

PIECES = ["a ", "b", "\n", "\n\n", "- ", "1. ", "    ", "```", "**", "`", "# ", "|", "-|-", "===", "日"]

_CONTROL = re.compile(r"\x1b\[(\d*)([A-Za-z])|\x1b\[[0-9;]*m")


class Emulator:
    """As much of a terminal as the view uses; every line that was ever on the screen is kept."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.lines: list[list[str]] = [[]]
        self.row = 0
        self.column = 0

    def write(self, text: str) -> None:
        at = 0
        while at < len(text):
            control = _CONTROL.match(text, at)
            if control:
                at = control.end()
                self.control(control[2], int(control[1] or 1) if control[1] else 0)
            else:
                self.put(text[at])
                at += 1

    def control(self, name: str | None, n: int) -> None:
        if name == "A":
            assert self.row - max(1, n) >= self.top, "the cursor went above the screen"
            self.row -= max(1, n)
        elif name in ("J", "K"):
            del self.lines[self.row][self.column :]
            if name == "J":
                del self.lines[self.row + 1 :]

    @property
    def top(self) -> int:
        return max(0, len(self.lines) - self.height)

    def put(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self.row += 1
            if self.row == len(self.lines):
                self.lines.append([])
        elif size := get_character_cell_size(character):
            assert self.column + size <= self.width, "a line is too long"
            row = self.lines[self.row]
            row[self.column : self.column + size] = [character, *[""] * (size - 1)]
            self.column += size
        else:
            self.lines[self.row][-1] += character

    def text(self) -> str:
        return "\n".join("".join(line).rstrip() for line in self.lines).strip("\n")


def show(pieces: list[str], width: int = 60, height: int = 24, *, eager: bool = True) -> tuple[str, str]:
    """What the screen shows in the end, and what it showed in between."""
    emulator = Emulator(width, height)
    view = MarkdownView(Paper(Console(force_terminal=True, width=width, height=height)), emulator.write)
    view.wait()
    between = emulator.text()
    for piece in pieces:
        if eager:
            view._next_paint = 0
        view.add(piece)
    view.finish()
    return emulator.text(), between


def cut(text: str, seed: int) -> list[str]:
    chance = random.Random(seed)
    pieces, at = [], 0
    while at < len(text):
        n = chance.randint(1, 7)
        pieces.append(text[at : at + n])
        at += n
    return pieces


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("height", [24, 5])
def test_pieces_show_what_the_whole_shows(seed: int, height: int) -> None:
    whole, waiting = show([TEXT])
    assert waiting == "…"
    assert "…" not in whole
    if height == 24:
        assert show(cut(TEXT, seed), height=height)[0] == whole
    else:  # on so small a screen, what has scrolled away is not painted again, but nothing is lost
        shown = show(cut(TEXT, seed), height=height)[0]
        for word in ("Heading", "🦙", "its paragraph", "nested", 'return "two" * x', "22", "quoted", "last"):
            assert word in shown


def test_how_it_looks() -> None:
    assert show([TEXT])[0].splitlines()[:3] == [
        "Heading",
        "",
        "A paragraph with bold, code and a link (http://x.y/z) that",
    ]
    assert show(["```c\nint x;\n\nint y;\n```"])[0] == "int x;\n\nint y;"
    assert show(["1. a\n\n2. b\n"])[0] == " 1 a\n 2 b"
    assert show(["*a*", "\n\n\n", "b"])[0] == "a\n\nb"


@pytest.mark.parametrize("text", ["", "\n", "   ", "#", "```", "|", "\u2028", "\x1b[2J\x07", "<b>", "[x]: y"])
def test_odd_answers(text: str) -> None:
    shown, _ = show([text])
    assert "…" not in shown
    assert "\x1b" not in shown


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert show(["a\x1b[2Jb \u202ec"])[0] == "a\\x1b[2Jb \\u202ec"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_any_pieces(pieces: list[str]) -> None:
    assert show(pieces, height=200)[0] == show(["".join(pieces)], height=200)[0]


def test_blocks_add_up_to_the_text() -> None:
    paper = Paper(Console(force_terminal=True, width=60))
    assert "".join(paper.split(TEXT)) == TEXT
    assert len(paper.split(TEXT)) == 8
    for text in ("", "\n\n", "a\x0bb\u2028c\n\nd\x0ce"):
        assert "".join(paper.split(text)) == text


def test_painting_leaves_time_for_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    painted = 0
    clock = 0.0

    class Slow(Paper):
        def lines(self, text: str) -> list[str]:
            nonlocal painted, clock
            painted += 1
            clock += 0.05
            return [text]

    monkeypatch.setattr(markdown, "monotonic", lambda: clock)
    view = MarkdownView(Slow(Console(force_terminal=True)), lambda text: None)
    for _ in range(1000):
        clock += 0.001
        view.add("x")
    assert painted < 10


def test_a_narrower_terminal_wraps_lines_that_are_there() -> None:
    console = Console(force_terminal=True, width=60, height=20)
    out: list[str] = []
    view = MarkdownView(Paper(console), out.append)
    view.add("word " * 10)
    assert cell_len(out[-1]) >= 49
    console.width = 30
    view._next_paint = 0
    view.add("end")
    assert out[-1].startswith("\r\x1b[1A")
