"""The page and the tables, which `make test-conformance` holds the server to, say the same."""

from __future__ import annotations

from server.conformance.deviations import PAGE, REFUSED, refusal, rows, with_table


def test_the_page_has_the_table() -> None:
    text = PAGE.read_text("utf-8")
    assert "\n".join(rows()) in text, "write it: PYTHONPATH=tests python -m server.conformance.deviations"
    assert with_table(text) == text


def test_a_refusal_is_known_by_its_status_too() -> None:
    assert refusal(404, "there is no model 'x'") in REFUSED
    assert refusal(500, "there is no model 'x'") is None
    assert refusal(400, "temperature must be at most 2, found 3") is None
