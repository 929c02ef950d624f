"""docs/api.md has every path of the server, and its examples of requests are answered.

Run as a program, this writes the table of paths: PYTHONPATH=tests python -m server.test_api_page
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from server.conftest import Running

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
CLIENTS = {  # by the tags of routes, with the section of the page and what asks there
    "OpenAI": ("[OpenAI](#openai)", "`openai`, with `base_url` …`/v1`"),
    "Anthropic": ("[Anthropic](#anthropic)", "`anthropic`, with `base_url` …"),
    "Llama API": ("[Llama API](#llama-api)", "`llama-api-client`, with `base_url` …`/llama/v1`"),
    "Ollama": ("[Ollama](#ollama)", "`ollama`, with `host` …"),
    "Puna": ("Puna's own", "any"),
    "Operations": ("of operators ([guide](serving.md))", "any"),
}


def table(app: FastAPI) -> str:
    """All paths, by API."""
    found: dict[str, list[str]] = {}
    for path, methods in app.openapi()["paths"].items():
        for tag in sorted({tag for method in methods.values() for tag in method["tags"]}):
            found.setdefault(tag, []).append(f"`{path}`")
    found["Anthropic"].append("`/v1/models`")  # OpenAI's path, in this API's shape where a header says so
    assert set(found) == set(CLIENTS), set(found)
    rows = [f"| {name} | {', '.join(found[tag])} | {client} |" for tag, (name, client) in CLIENTS.items()]
    return "\n".join(["| API | paths | client |", "|---|---|---|", *rows])


def with_table(page: str, app: FastAPI) -> str:
    return re.sub(
        r"(?<=<!-- paths -->\n).*?(?=<!-- end of paths -->)",
        lambda _: f"\n{table(app)}\n\n",
        page,
        flags=re.DOTALL,
    )


def test_the_page_has_every_path(server: Running) -> None:
    text = PAGE.read_text("utf-8")
    assert table(server.app) in text, "write it: PYTHONPATH=tests python -m server.test_api_page"
    assert with_table(text, server.app) == text


def test_its_forms_are_answered(server: Running) -> None:
    forms = re.findall(r'`(\{"type": "(regex|lark|choice)".*?\})`', PAGE.read_text("utf-8"))
    assert sorted(kind for _, kind in forms) == ["choice", "lark", "regex"]
    for form, _ in forms:
        body: dict[str, Any] = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Go on."}],
            "response_format": json.loads(form),
            "max_tokens": 40,
        }
        answer = server.post("/v1/chat/completions", body)
        assert answer.status_code == 200, answer.text


def test_its_lists_of_ollamas_options_are_whole() -> None:
    from puna.server.ollama.fields import OFF, Asked, Options

    section = re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    (ollama,) = [text for text in section if text.startswith("Ollama\n")]
    rows = {row.split(" | ")[0].strip("| "): row for row in ollama.splitlines() if row.startswith("| ")}
    assert set(re.findall(r"`(\w+)`", rows["options without effect"])) == set(Options.harmless) - {
        "mirostat_tau",
        "mirostat_eta",
    }
    assert set(re.findall(r"`(\w+)`", rows["options that are refused"])) >= set(OFF)
    assert set(Asked.harmless) <= set(re.findall(r"`(\w+)`", ollama))


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    from llm.tiny_llm import write_tiny_llm
    from server.conftest import one_model, open_accounts

    from puna import LLM
    from puna.server.app import create_app
    from puna.server.config import ServerConfig

    with TemporaryDirectory() as made:
        models = one_model("tiny", LLM(write_tiny_llm(Path(made) / "tiny.gguf"), threads=1))
        accounts = open_accounts(Path(made))
        app = create_app(ServerConfig(files_folder=made), models, accounts)
        PAGE.write_text(with_table(PAGE.read_text("utf-8"), app), "utf-8")
        accounts.close()
