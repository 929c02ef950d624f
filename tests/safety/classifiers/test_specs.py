"""Classifiers from a line, and the scanners as one."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from puna.core import BadInput, BadValue
from puna.safety.classifiers import make
from puna.safety.scanners import libraries
from puna.safety.verdict import Verdict


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("pattern:x", "must be one of patterns:FILE, scan:KIND,KIND, http:URL#MODEL, injection:FOLDER, got "
         "'pattern:x'; did you mean 'patterns'?"),
        ("scan", "must be one of"),
        ("scan:", "scan: must be followed by KIND,KIND, got nothing"),
        ("scan:hidden,secret", "kinds must be of hidden, special, secrets, personal, code, got 'secret'; did "
         "you mean 'secrets'?"),
        ("scan:hidden,hidden", "kinds must differ, got 'hidden' twice"),
        ("http:https://api.openai.com/v1/moderations", "must be followed by URL#MODEL"),
        ("injection:/nowhere", "must be the folder of an injection encoder"),
    ],
)  # fmt: skip
def test_a_wrong_line_says_what_is_expected(spec: str, said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(said)):
        make(spec)


def test_scanners_judge() -> None:
    scanner = make("scan:hidden,special,personal,code")
    texts = ["fine", "a\u200bb", "<|eot_id|> to bob@corp.example", "```python\neval(input())\n```"]
    found = asyncio.run(scanner.judge([[("assistant", text)] for text in texts]))
    assert found == [
        Verdict(False, 0.0),
        Verdict(True, 1.0, ("hidden-characters",)),
        Verdict(True, 1.0, ("control-tokens", "personal-data")),
        Verdict(True, 1.0, ("unsafe-code",)),
    ]


def test_a_library_that_lacks_is_missed_when_the_classifier_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name=name.partition(".")[0])

    monkeypatch.setattr(libraries, "import_module", missing)
    with pytest.raises(BadInput, match=r"phonenumbers, which is not installed: pip install 'puna\[safety\]'"):
        make("scan:personal")
    with pytest.raises(BadInput, match=r"injection encoder needs torch.*pip install 'puna\[torch\]'"):
        make("injection:somewhere")
    assert make("scan:hidden").name == "scan:hidden"


def test_an_error_within_a_library_is_no_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ModuleNotFoundError(name="something_else")

    monkeypatch.setattr(libraries, "import_module", broken)
    with pytest.raises(ModuleNotFoundError):
        libraries.need("re2", "google-re2", "x")


def test_an_unknown_region_is_refused_at_once() -> None:
    from puna.safety.classifiers.scanning import Scanning

    with pytest.raises(BadValue, match="two capital letters"):
        Scanning("personal", "XX")
