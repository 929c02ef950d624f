"""The page and the tables, which `make test-conformance` holds the server to, say the same."""

from __future__ import annotations

from server.conformance.deviations import PAGE, rows, with_table
from server.conformance.refusals import Asked, refusal


def test_the_page_has_the_table() -> None:
    text = PAGE.read_text("utf-8")
    assert "\n".join(rows()) in text, "write it: PYTHONPATH=tests python -m server.conformance.deviations"
    assert with_table(text) == text


def test_a_refusal_has_to_be_true() -> None:
    said = "there is no file 'file-1'; GET /v1/files lists them"
    assert refusal(404, said, Asked()) is not None
    assert refusal(500, said, Asked()) is None
    assert refusal(404, said, Asked(ids=frozenset({"file-1"}))) is None
    assert refusal(404, """there is no '…"' in 'resp_1'""", Asked()) is not None
    assert refusal(404, """there is no model "it's"; GET /v1/models lists them""", Asked()) is not None
    missing = "model is missing"
    assert refusal(400, missing, Asked({"input": "Hi"})) is not None
    assert refusal(400, missing, Asked({"model": "m"})) is None
    assert refusal(400, "temperature must be at most 2, found 3", Asked({"temperature": 3})) is None
