"""The llama fixtures of canitoolcall, under its own checks, streamed in all of its ways and not."""

from __future__ import annotations

import pytest

from puna.text.tools import parse_tool_calls

pytest.importorskip("canitoolcall", reason="canitoolcall is not installed (pip install --group test)")

from canitoolcall.checks import run_checks
from canitoolcall.chunking import DEFAULT_STRATEGIES, ChunkStrategy, split_text
from canitoolcall.fixtures import Fixture, load_family, load_fixtures
from canitoolcall.results import Observation, ParsedToolCall, ParseResult, Status

FIXTURES = load_fixtures(families=["llama"])
# Fixtures have ids of Llama 3's and 4's vocabularies; characters are finer than any of their tokens.
STRATEGIES = [s for s in DEFAULT_STRATEGIES if s.kind != "special"]
STRATEGIES += [ChunkStrategy("char", 0), ChunkStrategy("char", 1)]


def result(fixture: Fixture, pieces: list[str]) -> ParseResult:
    text, calls = parse_tool_calls(pieces, fixture.tools)
    return ParseResult(text, None, tuple(ParsedToolCall(call.name, call.arguments_json) for call in calls))


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture.id)
def test_fixture(fixture: Fixture) -> None:
    streams = {s.id: result(fixture, split_text(fixture.raw_output, s)) for s in STRATEGIES}
    seen = Observation(result(fixture, [fixture.raw_output]), streams)
    rows = run_checks(fixture, load_family("llama"), seen)
    assert rows
    for row in rows:
        assert row.status in (Status.PASS, Status.SOFT_PASS), row


def test_none_is_missing() -> None:
    assert len(FIXTURES) == 34
