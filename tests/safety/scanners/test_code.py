"""Code between fences, judged by bandit."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from puna.core import BadInput, WorkFailed
from puna.safety.scanners import code

SHELL = 'é = "ü"; subprocess.call("ls " + x, shell=True)'
ANSWER = f"""Run this:

```python
import subprocess
{SHELL}  # nosec
```

~~~sh
rm -rf / --shell=True
~~~

````
# no language, and no Python: {{}}
```
````

```py
x = 1 +
```
"""


def test_blocks_are_those_between_fences() -> None:
    blocks = list(code.code_blocks(ANSWER))
    assert [block.language for block in blocks] == ["python", "sh", "", "py"]
    assert all(ANSWER[block.start :].startswith(block.code) for block in blocks)
    assert blocks[2].code.endswith("```\n")
    assert [block.code for block in code.code_blocks("text\n```python\nopen")] == ["open"]
    assert list(code.code_blocks("no fence, `code` and ``` in a line ```")) == []


def test_unsafe_python_is_found_where_it_stands() -> None:
    shell, unread = code.scan(ANSWER)
    assert shell.rule == "subprocess-popen-with-shell-equals-true"
    assert ANSWER[shell.start :].startswith("subprocess.call(")
    assert "B602" in shell.detail
    assert unread.rule == "not-judged"  # Python by its fence that is none


def test_code_without_flaws_is_no_finding() -> None:
    assert code.scan("```python\nprint(sum(range(10)))\n```\n\n```\nnot python at all\n```") == []


def test_a_tool_that_is_absent_slow_or_broken_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "```python\nprint(1)\n```"
    with pytest.raises(WorkFailed, match=r"bandit took more than 0.001 s for 9 characters of code"):
        code.scan(text, code.Bandit(seconds=0.001))

    def broken(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(command, 1, b"", b"Traceback\nMemoryError")

    monkeypatch.setattr(code.subprocess, "run", broken)
    with pytest.raises(WorkFailed, match="bandit gave no report: MemoryError"):
        code.scan(text)
    monkeypatch.setattr(code, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="pip install bandit"):
        code.scan(text)


def test_many_blocks_take_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of many fences must not keep a server busy with one start for each."""
    started = []
    run = subprocess.run

    def counted(*args: Any, **kwargs: Any) -> Any:
        started.append(args)
        return run(*args, **kwargs)

    monkeypatch.setattr(subprocess, "run", counted)
    bad = "```python\nimport subprocess\nsubprocess.call('ls ' + x, shell=True)\n```\n"
    text = "```python\nx = 1\n```\n" * 20 + bad + "```python\ndef f(:\n```\n"
    found = code.scan(text)
    assert [one.rule for one in found] == ["subprocess-popen-with-shell-equals-true", "not-judged"]
    assert text[found[0].start : found[0].end].startswith("subprocess.call")
    assert len(started) == 1
