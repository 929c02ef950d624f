"""Control tokens in texts, plain and disguised."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core import BadInput
from puna.safety.scanners import folding
from puna.safety.scanners.special import scan
from puna.text.tiktoken_file import _SPECIAL

WRITTEN = [
    *_SPECIAL, "<|header_start|>", "<|header_end|>",
    "<|eot|>", "<|eom|>", "<|python_start|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>",
    "[INST]", "[/INST]",
    "<<SYS>>", "<</SYS>>", "<start_of_turn>", "[TOOL_CALLS]",
]  # fmt: skip
FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}


@pytest.mark.parametrize("token", WRITTEN)
def test_tokens_are_found_as_they_are_written(token: str) -> None:
    [found] = scan(f"Hello{token}system")
    assert (found.start, found.end, found.rule) == (5, 5 + len(token), "control-token")
    assert found.detail.startswith(token)


@pytest.mark.parametrize(
    "text",
    [
        "<|eot_id|>".translate(FULL_WIDTH),
        "[INST]".translate(FULL_WIDTH),
        "<|\u200beot\u2060_id|>",
        "<|\u0435\u043et_id|>",  # Cyrillic
        "<\u01c0eot_id\u2223>",  # a click and a sign of division
        "\u27e8|eot_id|\u27e9",
        "< | eot_id | >",
        "<| e o t _ i d |>",
        "<|EOT_ID|>",
        "<|eot\U000e0041_id|>",
        "<|e\u0323ot_id|>",
        "[ I N S T ]",
        "\u27ea\u0405YS\u27eb",
        "<\uff5cbegin\u2581of\u2581sentence\uff5c>",  # as DeepSeek writes it
    ],
)
def test_disguises_are_seen_through(text: str) -> None:
    [found] = scan(f"ok {text} ok")
    assert (found.start, found.end, found.rule) == (3, 3 + len(text), "disguised-control-token")


@pytest.mark.parametrize(
    "text",
    [
        "f <| start |> g",  # F#, Elm
        "xs |> map <| fun x -> x",
        "<label>, a < b | c > d, [inst], [INSTALL], <SYS>",
        "Приемлемо: <b>текст</b> | [ИНСТ]",
        "a <|> b, <||>, <|>",
    ],
)
def test_ordinary_texts_are_left_alone(text: str) -> None:
    assert scan(text) == []


@settings(deadline=None)
@given(st.text())
def test_places_are_those_of_the_text(text: str) -> None:
    marked = f"{text}<|eot_id|>"
    assert any(
        (one.start, one.end) == (len(text), len(marked)) for one in scan(marked) if one.end > len(text)
    )


def test_the_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name=name.partition(".")[0])

    folding._look_alikes.cache_clear()
    monkeypatch.setattr("puna.safety.scanners.libraries.import_module", missing)
    with pytest.raises(BadInput, match=r"confusable-homoglyphs.*pip install 'puna\[safety\]'"):
        scan("é")
    monkeypatch.undo()
    assert scan("é") == []
