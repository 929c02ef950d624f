"""Where other commands meet a licence: what convert leaves beside a model, what a server shows."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import httpx
import pytest
from golden.tiny import TINY
from llm.tiny_llm import write_tiny_llm
from server.conftest import Start, one_model, open_accounts
from server.conftest import start as start
from server.conftest import tiny_path as tiny_path
from weights.hf_folder import write_hf

from puna import LLM
from puna.cli.main import main
from puna.cli.serve import _greet, marks_of_all, say_marks
from puna.license.agreements import agreements
from puna.llm.resident import Resident
from puna.llm.terms import marks_of
from puna.server.config import ServerConfig
from puna.server.logs import logging_to

CARD = "---\nlicense: llama3.1\n---\n"
TITLE = "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n"
NOTICE = agreements()["llama-3.1"].notice


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "home"))


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A folder as a hub has it."""
    folder = write_hf(TINY["llama2"], tmp_path / "release")
    (folder / "README.md").write_text(CARD, "utf-8")
    (folder / "LICENSE.txt").write_text(TITLE, "utf-8")
    (folder / "USE_POLICY.md").write_text("Be good.\n", "utf-8")
    return folder


def verdicts(capsys: pytest.CaptureFixture[str], what: Path) -> dict[str, str]:
    main(["license", "check", str(what), "--activity", "distribute", "--json"])
    return {v["topic"]: v["verdict"] for v in json.loads(capsys.readouterr().out)["verdicts"]}


@pytest.mark.parametrize(
    ("name", "options", "beside"),
    [
        ("out.gguf", [], ["out.LICENSE.txt", "out.NOTICE.txt", "out.USE_POLICY.md"]),
        ("out", ["--to", "hf"], ["LICENSE.txt", "NOTICE", "USE_POLICY.md"]),
        ("out", ["--to", "meta"], ["LICENSE.txt", "NOTICE", "USE_POLICY.md"]),
    ],
)
def test_what_convert_writes_keeps_its_terms(
    name: str,
    options: list[str],
    beside: list[str],
    release: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "exported" / name
    out.parent.mkdir()
    assert main(["convert", str(release), str(out), *options, "--json"]) == 0
    said = capsys.readouterr()
    assert "a name that begins with “Llama” to be offered: Llama-out" in said.err
    assert len(json.loads(said.out)["terms"]) == 3
    folder = out if out.is_dir() else out.parent
    assert set(beside) <= {path.name for path in folder.iterdir()}
    notice = next(path for path in folder.iterdir() if "NOTICE" in path.name)
    assert notice.read_text("utf-8") == NOTICE + "\n"
    found = verdicts(capsys, out)
    assert (found["artifact"], found["notice"], found["copy"]) == ("ok", "ok", "ok")


def test_quantize_keeps_them_as_well(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(release), str(tmp_path / "Llama-q.gguf"), "--type", "q8_0"]) == 0
    assert "begins with" not in capsys.readouterr().err
    assert (tmp_path / "Llama-q.NOTICE.txt").read_text("utf-8") == NOTICE + "\n"


def test_a_model_that_is_no_llama_gets_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_llm(tmp_path / "tiny.gguf")
    assert (
        main(["convert", str(tmp_path / "tiny.gguf"), str(tmp_path / "out"), "--to", "hf", "--dtype", "f32"])
        == 0
    )
    assert "NOTICE" not in {path.name for path in (tmp_path / "out").iterdir()}
    assert "licence" not in capsys.readouterr().err


def test_where_sources_disagree_nothing_is_written(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (release / "LICENSE.txt").write_text(TITLE.replace("3.1", "3.2"), "utf-8")
    assert main(["convert", str(release), str(tmp_path / "out.gguf")]) == 0
    assert "its licence is unclear (llama-3.1 and llama-3.2)" in capsys.readouterr().err
    assert not (tmp_path / "out.NOTICE.txt").exists()


@pytest.mark.parametrize("requires_keys", [False, True])
def test_a_server_shows_what_the_licence_wants_shown(
    requires_keys: bool, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tiny_llm(tmp_path / "served.gguf")
    path.with_name("served.NOTICE.txt").write_text(NOTICE, "utf-8")
    models = one_model("served", LLM(path, threads=1, batch=4))
    accounts = open_accounts(tmp_path, requires_keys=requires_keys)
    running = start(ServerConfig(port=0), accounts, models=models)
    page = httpx.get(running.url)
    assert page.status_code == (401 if requires_keys else 200)
    assert page.text.count("<strong>Built with Llama</strong>") == 1
    with logging_to(form="text", level="info", shows_text=False):
        _greet("http://x", running.models)
    assert "Built with Llama: the licence of served wants this shown" in capsys.readouterr().err


def test_a_server_of_other_models_shows_nothing(
    start: Start, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running = start(ServerConfig(port=0))
    assert "Built with" not in httpx.get(running.url).text
    with logging_to(form="text", level="info", shows_text=False):
        _greet("http://x", running.models)
    assert "licence" not in capsys.readouterr().err


def test_a_model_whose_card_cannot_be_read_is_served_all_the_same(tmp_path: Path) -> None:
    path = write_tiny_llm(tmp_path / "tiny.gguf")
    (tmp_path / "tiny.README.md").write_bytes(b"\xff")
    assert marks_of(path) == ()
    shutil.copyfile(path, tmp_path / "other.gguf")
    (tmp_path / "other.NOTICE").write_text(agreements()["llama-3"].notice, "utf-8")
    assert marks_of(tmp_path / "other.gguf") == ("Built with Meta Llama 3",)


def test_an_adapter_shows_what_its_own_base_wants_as_well(tmp_path: Path) -> None:
    base = write_tiny_llm(tmp_path / "plain.gguf")
    folder = tmp_path / "lora"
    folder.mkdir()
    settings = {"base_model_name_or_path": "meta-llama/Meta-Llama-3-8B"}
    (folder / "adapter_config.json").write_text(json.dumps(settings), "utf-8")
    (folder / "adapter_model.safetensors").write_bytes(b"12345678")
    resident = Resident("plain", base)
    resident.adapters["lora"] = folder
    assert [(card.name, card.marks) for card in resident.cards()] == [
        ("plain", ()),
        ("lora", ("Built with Meta Llama 3",)),
    ]


def test_what_replicas_serve_is_said_without_loading_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tiny_llm(tmp_path / "served.gguf")
    path.with_name("served.NOTICE.txt").write_text(NOTICE, "utf-8")
    served = marks_of_all(argparse.Namespace(models=[f"mine={path}"], adapter=[]))
    assert served == [("mine", ("Built with Llama",))]
    with logging_to(form="text", level="info", shows_text=False):
        say_marks("http://x", served)
    assert "Built with Llama: the licence of mine wants this shown" in capsys.readouterr().err
