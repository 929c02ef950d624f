"""docs/models.md is what the catalog says."""

from __future__ import annotations

from pathlib import Path

import pytest

from puna.cli.main import main
from puna.cli.models_page import page
from puna.model.catalog import ANNOUNCED, CATALOG

FILE = Path(__file__).parent.parent.parent / "docs" / "models.md"


def test_the_page_is_up_to_date() -> None:
    assert FILE.read_text("utf-8") == page(), "run `puna list --catalog --markdown > docs/models.md`"


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--catalog", "--markdown"]) == 0
    assert capsys.readouterr().out == page()


def test_every_model_has_a_row() -> None:
    text = page()
    for name in [entry.name for entry in CATALOG]:
        assert f"| {name} |" in text
    for name in [model.name for model in ANNOUNCED]:
        assert f"- {name} (" in text
