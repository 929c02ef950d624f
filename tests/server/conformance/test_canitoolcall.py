"""`canitoolcall probe`, against a server whose model says what a good one would: the calls it is asked for.

They go through the engine token by token and are read by the parsers of tool calls, in streams as well; what
comes out is judged by the suite. Its fixtures, which need no server, are in tests/text/test_canitoolcall.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from canitoolcall.probe import BUILTIN_SCENARIOS, probe
from server.conftest import Running
from server.structured.scripted import Script

# scenario -> the calls that answer it, in the words of Llama 3.1, or a text
ANSWERS: dict[str, Sequence[tuple[str, dict[str, Any]]] | str] = {
    "single-call": [("get_weather", {"city": "Paris"})],
    "parallel-calls": [("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Tokyo"})],
    "no-call": "42",
    "nested-args": [
        (
            "create_event",
            {
                "title": "Design review",
                "attendees": [{"name": "Ana", "email": "ana@example.com"}],
                "location": {"city": "Berlin", "room": "4.12"},
            },
        )
    ],
    "unicode-args": [
        ("save_note", {"title": "Grüße aus Zürich", "body": "Café ☕ in 東京 — naïve résumé 🚀"})
    ],
    "empty-args": [("get_server_time", {})],
    "forced-tool-choice": [("get_weather", {"city": "Lisbon"})],
    "tool-result-followup": "It is clear in Paris, at 18 degrees.",
    "reasoning-then-call": [("record_answer", {"answer": "9.9"})],
}


def said(answer: Sequence[tuple[str, dict[str, Any]]] | str) -> str:
    if isinstance(answer, str):
        return answer
    calls = [{"name": name, "parameters": arguments} for name, arguments in answer]
    return "; ".join(json.dumps(call, ensure_ascii=False) for call in calls)


def test_the_scenarios_are_those_of_the_suite() -> None:
    assert [scenario.id for scenario in BUILTIN_SCENARIOS] == [*ANSWERS]


@pytest.mark.parametrize("scenario", BUILTIN_SCENARIOS, ids=lambda scenario: scenario.id)
def test_the_probe(server: Running, monkeypatch: pytest.MonkeyPatch, scenario: Any) -> None:
    script, ask = Script(server, monkeypatch), server.llm.chat_request

    def chat_request(*asked: Any, **more: Any) -> Any:
        script.say(said(ANSWERS[scenario.id]))
        return ask(*asked, **more)

    monkeypatch.setattr(server.llm, "chat_request", chat_request)
    report = probe(f"{server.url}/v1", "tiny", scenarios=[scenario], concurrency=1)
    assert report.summary() == {"pass": 3, "fail": 0, "error": 0, "skip": 0}, report.render_text()
    assert not any(outcome.warnings for outcome in report.outcomes), report.render_text()
