"""`puna safety eval` and `show`: a guard of known answers, bad files, the taxonomies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llm.guard_models import forced_guard
from llm.test_guards import AFTER, TEMPLATE

from puna.cli.main import main
from puna.license.agreements import policy
from puna.safety.llama_guard import versions

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*argv: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["safety", *argv])
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "cases.jsonl"
    rows = [
        {"text": f"t{i}", "unsafe": i < 3, "category": "hate", "lang": "en", "group": "g"} for i in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_guards_are_measured_side_by_side(data: Path, tmp_path: Path, run: Run) -> None:
    """One that says unsafe with probability 0.75 whatever it is shown, and one that says safe."""
    names = []
    for name, said in (("alarm", {"safe": 0.2, "unsafe": 0.6}), ("calm", {"safe": 0.6, "unsafe": 0.2})):
        names.append(str(forced_guard(tmp_path / name, {**AFTER, "ĊĊ": said}, TEMPLATE)))
    asked = [part for name in names for part in ("--classifier", name)]
    code, out, err = run("eval", "--data", str(data), *asked, "--json", "--prompt", "llama-guard-3-1b")
    assert code == 0, err
    assert "not looked at: lang" in err
    made: Any = json.loads(out)
    alarm, calm = made["classifiers"]
    assert alarm["confusion"] == {"tp": 3, "fp": 5, "fn": 0, "tn": 0}
    assert alarm["precision"] == {"value": 0.375, "low": 0.375, "high": 0.375}
    assert alarm["auprc"]["value"] == 0.375
    assert alarm["best_threshold"]["threshold"] == pytest.approx(0.75, abs=1e-4)
    assert (calm["precision"], calm["recall"]["value"]) == (None, 0)
    assert made["differences"][0]["recall"] == {"value": -1, "low": -1, "high": -1}
    code, out, err = run("eval", "--data", str(data), *asked)
    assert code == 0, err
    assert "8 cases, 3 of them unsafe" in out
    assert "of the unsafe 3 flagged and 0 missed, of the safe 5 flagged and 0 let pass" in out
    assert "CATEGORY" in out
    assert "paired" in out


def test_what_is_wrong_is_one_sentence(data: Path, tmp_path: Path, run: Run) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"text": "a", "unsafe": true}\n{"text": "b"}\n')
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    for argv, match in (
        (("--data", str(bad), "--classifier", "x"), "bad.jsonl:2: `unsafe` must be"),
        (("--data", str(tmp_path / "none"), "--classifier", "x"), "cannot read"),
        (("--data", str(tmp_path / "bytes.jsonl"), "--classifier", "x"), "must be utf-8 text"),
        (("--data", str(data), "--classifier", "no-such-model"), "no-such-model"),
        (("--data", str(data), "--classifier", "x", "--classifier", "x"), "name each --classifier once"),
        (("--data", str(data), "--classifier", "x", "--seed", "-1"), "--seed must be 0 or more"),
        (("--data", str(data), "--classifier", "x", "--prompt", "llama-guard-9"), "there is no Llama Guard"),
        (("--data", str(data)), "--classifier"),
    ):
        code, out, err = run("eval", *argv)
        assert (code, out) == (2, "")
        assert match in err
        assert "Traceback" not in err


def test_a_taxonomy_and_the_policies_are_shown(run: Run) -> None:
    code, out, _ = run("show")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(versions())
    for name, version in versions().items():
        code, out, _ = run("show", name, "--json")
        made: Any = json.loads(out)
        assert [one["code"] for one in made["categories"]] == [one.code for one in version.categories]
        if version.letter == "O":
            assert made["uses"] is None
            continue
        assert [use["id"] for use in made["uses"]] == [use.id for use in policy("policy-3.2").uses]
    code, out, _ = run("show", "llama-guard-3", "--policy", "policy-2", "--json")
    made = {use["id"]: use["codes"] for use in json.loads(out)["uses"]}
    assert made == {use.id: sorted(use.hazards, key=lambda c: int(c[1:])) for use in policy("policy-2").uses}
    code, out, _ = run("show", "llama-guard-2")
    seen, _, attest = out.partition("attest:")
    assert "1.d " in seen
    assert " S5 " in seen  # Specialized Advice, which is S6 in the next generation
    assert "defamation" in attest  # which it was not taught


def test_what_is_shown_must_be_there(run: Run) -> None:
    for argv, match in (
        (("llama-guard-5",), "there is no Llama Guard 'llama-guard-5'"),
        (("llama-guard-3", "--policy", "policy-9"), "there is no use policy 'policy-9'"),
        (("--policy", "policy-2"), "belongs to a version"),
    ):
        code, _, err = run("show", *argv)
        assert code == 2
        assert match in err
