"""Bad input; what --fix and --sbom write; the data; readers of texts against those of others."""

from __future__ import annotations

import json
import threading
import tomllib
from datetime import date
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from puna.cli.main import main
from puna.core import BadValue
from puna.license import DISCLAIMER, duties
from puna.license.agreements import agreements, artifact_rows, get, policy
from puna.license.situation import month
from puna.license.texts import front_matter, shows

DATA = files("puna.license") / "data"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "home"))


def model(tmp_path: Path, card: str = "license: llama3.1") -> Path:
    place = tmp_path / "a-model"
    place.mkdir()
    (place / "README.md").write_text(f"---\n{card}\n---\nA model.\n", "utf-8")
    return place


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = main(["license", *map(str, argv)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


BAD: dict[str, tuple[list[str], str]] = {
    "unknown model": (["check", "llama-3.1-8b-instuct", "--activity", "use"], "'llama-3.1-8b-instruct'"),
    "unknown agreement": (["show", "llama-3.5"], "did you mean 'llama-3"),
    "unknown licence": (["check", "smollm2", "--activity", "use", "--licence", "lama-3.1"], "'llama-3.1'"),
    "unknown activity": (["check", "llama-2-7b", "--activity", "distribut"], "did you mean 'distribute'?"),
    "unknown base": (["check", "smollm2", "--activity", "use", "--base", "llama-3-8"], "'llama-3-8b'"),
    "unknown target": (["check", "llama-2-7b", "--activity", "train-on-outputs", "--target", "x-1"], "'x-1'"),
    "no activity": (["check", "llama-2-7b"], "--activity"),
    "nothing to check": (["check"], "name what to check"),
    "month 13": (["check", "llama-2-7b", "--activity", "use", "--mau", "1", "--month", "2023-13"], "2023-13"),
    "no month": (["check", "llama-2-7b", "--activity", "use", "--mau", "1", "--month", "June"], "YYYY-MM"),
    "future": (["check", "llama-2-7b", "--activity", "use", "--mau", "1", "--month", "2099-01"], "2099-01"),
    "month alone": (["check", "llama-2-7b", "--activity", "use", "--month", "2023-06"], "add --mau"),
    "negative": (["check", "llama-2-7b", "--activity", "use", "--mau=-5", "--month", "2023-06"], "got -5"),
    "words": (["check", "llama-2-7b", "--activity", "use", "--mau", "many", "--month", "2023-06"], "'many'"),
    "region": (["check", "llama-4-scout", "--activity", "use", "--region", "Germany"], "did you mean 'DE'?"),
    "no country": (["check", "llama-4-scout", "--activity", "use", "--region", "QQ"], "'QQ'"),
    "empty name": (["check", "llama-4-scout", "--activity", "train-on-weights", "--name", " "], "--name"),
    "no page": (["check", "llama-4-scout", "--activity", "serve", "--attribution", "no.html"], "no.html"),
    "purpose": (["check", "llama-1-7b", "--activity", "use", "--purpose", "fun"], "fun"),
    "options of the other": (["show", "llama-2", "--region", "DE"], "--region belongs to"),
    "closed port": (
        ["check", "llama-4-scout", "--activity", "serve", "--attribution", "http://127.0.0.1:9/"],
        "could not be read",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_sentence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv, said = BAD[name]
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_bad_texts_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = model(tmp_path)
    (place / "config.json").write_text("{", "utf-8")
    code, _, err = run(capsys, "check", place, "--activity", "use")
    assert (code, "config.json must be JSON" in err) == (2, True)
    (place / "config.json").write_text("[" * 100_000, "utf-8")
    assert run(capsys, "check", place, "--activity", "use")[0] == 2
    (place / "config.json").unlink()
    (place / "NOTICE").write_bytes(b"\xff\xfe")
    code, _, err = run(capsys, "check", place, "--activity", "distribute")
    assert (code, "NOTICE must be UTF-8" in err) == (2, True)


def test_a_month_may_be_this_one_and_no_later() -> None:
    assert month("2025-03", date(2025, 3, 1)) == "2025-03"
    with pytest.raises(BadValue, match="2025-04"):
        month("2025-04", date(2025, 3, 31))


def test_fix_writes_what_is_missing_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = model(tmp_path)
    (place / "LICENSE").write_text("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n", "utf-8")
    (place / "NOTICE").write_text("Portions by Acme.\n", "utf-8")
    argv = ("check", place, "--activity", "distribute", "--json")
    assert run(capsys, *argv)[0] == 1
    code, out, _ = run(capsys, *argv, "--fix")
    assert (code, json.loads(out)["written"]) == (0, [str(place / "NOTICE"), str(place / "README.md")])
    assert (place / "NOTICE").read_text(
        "utf-8"
    ) == f"Portions by Acme.\n\n{agreements()['llama-3.1'].notice}\n"
    assert (place / "README.md").read_text("utf-8").endswith("A model.\n\nBuilt with Llama\n")
    before = {path: path.read_bytes() for path in place.iterdir()}
    code, out, _ = run(capsys, *argv, "--fix")
    assert (code, json.loads(out)["written"]) == (0, [])
    assert {path: path.read_bytes() for path in place.iterdir()} == before


def test_fix_writes_into_the_page_that_was_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "index.html"
    page.write_text("<html><body><h1>Hi</h1></body></html>", "utf-8")
    argv = ("check", "llama-3-8b", "--activity", "serve", "--attribution", page)
    assert run(capsys, *argv)[0] == 1
    code, out, _ = run(capsys, *argv, "--fix")
    assert code == 0
    assert DISCLAIMER in out
    assert page.read_text("utf-8").endswith("<p>Built with Meta Llama 3</p>\n</body></html>")


def test_fix_does_not_guess(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = model(tmp_path)
    (place / "LICENSE").write_text("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\n", "utf-8")
    argv = ("check", place, "--activity", "distribute", "--fix")
    code, out, err = run(capsys, *argv)
    assert (code, out, "llama-3.1 and llama-3.2" in err) == (2, "", True)
    assert not (place / "NOTICE").exists()
    assert run(capsys, *argv, "--licence", "llama-3.2")[0] == 0
    assert (place / "NOTICE").read_text("utf-8") == agreements()["llama-3.2"].notice + "\n"


def test_an_address_is_fetched_when_it_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "about.html").write_text("<p>Built with <i>Llama</i></p>", "utf-8")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        argv = ("check", "llama-3.1-8b", "--activity", "serve", "--attribution")
        assert run(capsys, *argv, f"{url}/about.html")[0] == 0
        code, _, err = run(capsys, *argv, f"{url}/missing.html")
        assert (code, "404" in err) == (2, True)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("name", ["FOLDER", "smollm2", "llama-guard-3-8b", "llama-4-scout"])
def test_the_bill_of_materials_is_valid(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = "license: apache-2.0\nbase_model: [meta-llama/Llama-3.1-8B, meta-llama/Llama-3.2-1B]"
    what = model(tmp_path, card) if name == "FOLDER" else name
    file = tmp_path / "bom.json"
    run(
        capsys, "check", what, "--activity", "serve", "--sbom", file, "--outputs-of", "llama-3.3-70b-instruct"
    )
    text = file.read_text("utf-8")
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert problem is None, problem
    found = json.loads(text)["components"][0]
    assert found["type"] == "machine-learning-model"
    said = {row["name"]: row["value"] for row in found["properties"]}
    assert said["puna:license:disclaimer"] == DISCLAIMER
    if name == "FOLDER":
        assert found["licenses"] == [{"license": {"id": "Apache-2.0"}}]
        assert [one["name"] for one in found["pedigree"]["ancestors"]] == ["Llama-3.1-8B", "Llama-3.2-1B"]
        assert said["puna:license:llama-3.2:1.b.i(B):attribution"].startswith("duty")


def test_data_are_of_their_schema_and_dated() -> None:
    schema = json.loads((DATA / "agreement.schema.json").read_text("utf-8"))
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    for name in agreements():
        found = tomllib.loads((DATA / f"{name}.toml").read_text("utf-8"))
        validator.validate(json.loads(json.dumps(found, default=str)))
        assert found["id"] == name
        assert found["effective"] < found["read"]
        assert found["kind"] == "research" or (found["sha256"] and found["policy_sha256"])
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({"id": "llama-9"})
    for row in artifact_rows():
        assert row["source"].startswith("https://")
        assert row["read"]
        assert not row.get("agreement") or get(row["agreement"])


def test_a_model_of_two_ancestors_can_carry_both_agreements(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = model(tmp_path, "base_model: [meta-llama/Llama-3.1-8B, meta-llama/Llama-3.2-1B]")
    argv = ("check", place, "--activity", "distribute", "--name", "Llama-both", "--json")

    def copies() -> dict[str, str]:
        found = json.loads(run(capsys, *argv)[1])["verdicts"]
        return {v["agreement"]: v["verdict"] for v in found if v["topic"] == "copy"}

    (place / "LICENSE").write_text("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n", "utf-8")
    assert copies() == {"llama-3.1": "ok", "llama-3.2": "violated"}
    (place / "LICENSE.llama-3.2.txt").write_text("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\n", "utf-8")
    assert copies() == {"llama-3.1": "ok", "llama-3.2": "ok"}
    (place / "LICENSE.llama-3.2.txt").write_text("MIT License\n", "utf-8")
    assert copies() == {"llama-3.1": "ok", "llama-3.2": "violated"}


def test_each_version_has_a_month_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("check", "llama-3.1-8b", "--base", "llama-3-8b", "--activity", "use", "--json")

    def scale(*more: str) -> dict[str, str]:
        code, out, err = run(capsys, *argv, *more)
        assert code < 2, err
        return {v["agreement"]: v["verdict"] for v in json.loads(out)["verdicts"] if v["topic"] == "scale"}

    counts = ("--mau", "2024-03:us=400_000_000", "--mau", "2024-03:eu=299_000_000")
    assert scale(*counts) == {"llama-3.1": "unknown", "llama-3": "ok"}
    assert scale(*counts, "--mau", "2024-06: 700000001") == {"llama-3.1": "violated", "llama-3": "ok"}
    assert scale(*counts, "--mau", "5000000", "--month", "2024-06") == {"llama-3.1": "ok", "llama-3": "ok"}
    more = ("--mau", "2024-03:in=2_000_000")
    assert scale(*counts, *more) == {"llama-3.1": "unknown", "llama-3": "violated"}
    for wrong in ("2024-13:5", "2999-01:5", "us:5", "2024-03:"):
        assert run(capsys, *argv, "--mau", wrong)[0] == 2


def test_whose_reading_a_category_of_a_use_is(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (("show", "llama-3.3"), ("check", "llama-3.3-70b-instruct", "--activity", "use")):
        code, out, _ = run(capsys, *argv)
        assert (code, "our own reading" in out) == (0, True)
        assert "own reading" in run(capsys, *argv, "--json")[1]


def test_a_released_model_that_takes_pictures_is_no_text_model(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("--activity", "use", "--region", "DE", "--text-only")
    code, _, err = run(capsys, "check", "llama-4-scout", *argv)
    assert (code, "as it was released takes pictures" in err) == (2, True)


def test_every_third_use_has_no_category() -> None:
    for name, n_unseen in (("policy-2", 7), ("policy-3.2", 9)):
        uses = policy(name).uses
        assert len({use.id for use in uses}) == len(uses)
        assert sum(not use.hazards for use in uses) == n_unseen


def test_show_says_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "show", "Llama 3.2", "--json")
    found = json.loads(out)["agreements"][0]
    assert (code, found["id"], len(found["policy"]["uses"])) == (0, "llama-3.2", 27)
    assert all(rule["effective"] == "2024-09-25" and rule["source"] for rule in found["rules"])
    code, out, _ = run(capsys, "show", "llama-guard-4-12b")
    assert (code, "Llama 4 Community License Agreement" in out, DISCLAIMER in out) == (0, True, True)
    code, out, _ = run(capsys, "show")
    assert (code, all(name in out for name in agreements()), DISCLAIMER in out) == (0, True, True)


def test_one_function_for_others_to_call() -> None:
    found = {(v.clause, v.verdict) for v in duties("llama-3.1-8b", "distribute")}
    assert found == {("1.b.i(A)", "duty"), ("1.b.i(B)", "duty"), ("1.b.iii", "duty")}
    assert duties("llama-2-7b", "serve") == duties("smollm2", "distribute") == []


CARDS = [
    "license: llama3.1\nbase_model: meta-llama/Llama-3.1-8B",
    'license: other\nlicense_name: "llama4"  # a comment\nbase_model:\n  - org/A\n  - org/B\ntags: [a, "b"]',
    "language:\n- en\n- de\nlicense: apache-2.0 # yes\nbase_model:\n- x/y\npipeline_tag: image-text-to-text",
    "model-index:\n- name: a\n  results:\n  - task:\n      type: x\nlicense: mit\nbase_model: 'q/r'",
    "license: >-\n  llama3.2\nbase_model: []",
]


@pytest.mark.parametrize("card", CARDS)
def test_front_matter_is_read_as_yaml_reads_it(card: str) -> None:
    expected = yaml.safe_load(card)
    found = front_matter(f"---\n{card}\n---\ntext: no")
    for key in ("license", "license_name", "base_model", "tags", "pipeline_tag"):
        value = expected.get(key, [])
        assert list(found.get(key, ())) == (value if isinstance(value, list) else [value]), key


def test_what_readers_see() -> None:
    assert shows("**Built with\n_Meta_ Llama 3**", "Built with Meta Llama 3")
    assert shows("<p>BUILT WITH&nbsp;LLAMA</p>", "Built with Llama")
    assert not shows("<!-- Built with Llama", "Built with Llama")
    assert not shows("<style>Built with Llama</style >", "Built with Llama")
    assert not shows("Built with Meta Llama 3", "Built with Llama")
