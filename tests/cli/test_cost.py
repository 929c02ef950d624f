"""`puna cost`: every command on the shipped data, and what each refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from server.tenants.rows import row

from puna.cli.main import commands, main
from puna.server.storage.database import open_database
from puna.server.tenants.ledger import insert

MODEL = "llama-3.3-70b-instruct"
SERVE = ["serve", MODEL, "--n", "2", "--weights", "fp8", "--cache", "fp8"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def cost(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["cost", *argv, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_group_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    names = {"serve", "train", "market", "compare", "margin", "lift", "fleet", "update", "brief"}
    assert names <= set(commands("costs"))
    assert main(["cost", "--help"]) == 0
    out = capsys.readouterr().out
    for name in names:
        assert f"  {name}" in out
        assert main(["cost", name, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: puna cost {name}")


def test_serve_says_cost_by_denominator(capsys: pytest.CaptureFixture[str]) -> None:
    found = cost(capsys, *SERVE, "--rate", "2.95", "--tok-s", "4205")
    assert found["usd_per_mtok"]["mean"]["output"] == pytest.approx(0.39, abs=0.005)
    assert set(found["definitions"]) == set(found["usd_per_mtok"]["mean"]) - {"request"}
    more = ["--copies", "3", "--utilisation", "0.5"]
    double = cost(capsys, *SERVE, "--rate", "2.95", *more, "--tok-s", "4205")
    assert double["usd_per_mtok"]["mean"]["output"] == pytest.approx(2 * 0.3897, abs=0.001)
    owned = cost(capsys, *SERVE, "--capex", "30000")
    assert owned["usd_h"] == pytest.approx(1.23, abs=0.005)
    assert main(["cost", *SERVE, "--pareto", "--plot", "-"]) == 0
    shown = capsys.readouterr()
    assert "$/M OUTPUT" in shown.out
    assert "days old" in shown.err


def test_serve_takes_a_config_and_draws(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "intermediate_size": 8192, "vocab_size": 128256, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "max_position_embeddings": 8192, "tie_word_embeddings": True, "hidden_act": "silu",
    }  # fmt: skip
    path, picture = tmp_path / "config.json", tmp_path / "cost.png"
    path.write_text(json.dumps(config))
    mine = cost(capsys, "serve", str(path), "--plot", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert mine["limit"] == cost(capsys, "serve", "llama-3.2-1b")["limit"]


def test_serve_reads_reports_of_bench_and_loadtest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bench, load = tmp_path / "bench.json", tmp_path / "load.json"
    bench.write_text(
        json.dumps(
            {
                "model": {"name": "smollm2"},
                "machine": {"bf16_tflops": 2.0, "int8_tops": 5.0, "read_gb_s": 30.0},
                "prefill": [{"tokens": 512, "tok_s": 1000.0, "share_of_limit": 0.5}],
                "decode": [{"depth": 0, "tok_s": 100.0, "share_of_limit": 0.8}],
                "batch": [{"batch": 8, "tok_s": 500.0, "share_of_limit": 0.6}],
            }
        )
    )
    machine = ["--bench", str(bench), "--memory-gb", "16", "--rate", "0.36", "--weights", "int8"]
    found = cost(capsys, "serve", "llama-3.2-1b", *machine)
    own = found["bench_usd_per_mtok"]
    assert own["prefill"] == pytest.approx(0.1)  # 0.36 dollars an hour at 1,000 tokens/s
    assert own["decode_by_streams"] == pytest.approx({"1": 1.0, "8": 0.2})
    assert found["output_tok_s"]["mean"] == pytest.approx(0.6 * found["limit"]["output_tok_s"])
    load.write_text('{"output_tokens_per_s": 4205.0}')
    found = cost(capsys, *SERVE, "--rate", "2.95", "--loadtest", str(load))
    assert found["usd_per_mtok"]["mean"]["output"] == pytest.approx(0.39, abs=0.005)
    load.write_text("{}")
    assert main(["cost", *SERVE, "--loadtest", str(load)]) == 2
    assert "puna loadtest" in capsys.readouterr().err


def test_train_compare_market_fleet(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    train = cost(capsys, "train", "llama-3.1-405b", "--n", "16384", "--mtbf", "50000")
    assert train["reported"]["mfu"] == pytest.approx(0.345, abs=0.01)
    assert train["ideal"]["usd"] < train["planned"]["usd"]
    assert train["checkpoints"]["daly_s"] < train["checkpoints"]["young_s"]
    picture = tmp_path / "flip.png"
    found = cost(capsys, "compare", MODEL, "--plot", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert found["own_usd"] == pytest.approx(0.38, abs=0.005)
    name = "deepinfra/meta-llama/Llama-3.3-70B-Instruct-Turbo"
    turbo = [o for o in found["offers"] if o["model_id"] == name]
    assert turbo[0]["margin"] == pytest.approx(0.09, abs=0.005)
    assert turbo[0]["flip"] == pytest.approx(0.274, abs=0.001)
    assert turbo[0]["answer"] == "host it yourself"
    market = cost(capsys, "market", MODEL)
    assert all(r["source"] and r["fetched"] for r in market["prices"])
    assert any("free" in r["flags"] for r in market["prices"])
    fleet = cost(capsys, "fleet", MODEL, "--n", "1001", "--weights", "fp8")
    assert fleet["serve"]["copies"] * fleet["serve"]["per_copy"] + fleet["serve"]["idle"] == 1001


def test_margin_agrees_with_the_ledger(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, home: Path
) -> None:
    database = open_database("")
    rows = [row(n, cost_nano=10**6 + n) for n in range(300)]
    with database.write() as connection:
        insert(connection, rows)
    database.close()
    ledger = tmp_path / "ledger.csv"
    assert main(["usage", "--csv", str(ledger)]) == 0
    capsys.readouterr()
    assert main(["usage", "--by", "tenant,model", "--json"]) == 0
    usage = json.loads(capsys.readouterr().out)
    found = cost(capsys, "margin", str(ledger), "--hours", "1", "--rate", "0.123456789")
    assert found["revenue"] == usage["total"]["cost_nano"] == sum(r.cost_nano for r in rows)
    mine = {(line["tenant"], line["model"]): line["revenue"] for line in found["lines"]}
    assert mine == {(u["tenant"], u["model"]): u["cost_nano"] for u in usage["usage"]}
    assert sum(line["cost"] for line in found["lines"]) == found["cost"] == 123_456_789
    file = home / "server.db"
    assert file.exists(), list(home.iterdir())
    for place in (str(file), f"sqlite:///{file}"):  # the database itself says the same
        again = cost(capsys, "margin", place, "--hours", "1", "--rate", "0.123456789")
        assert again == found
    assert main(["cost", "margin", str(file), "--hours", "1", "--rate", "1", "--until", "2020-01-01"]) == 2
    assert "has no calls" in capsys.readouterr().err
    assert main(["cost", "margin", str(ledger), "--hours", "1", "--rate", "0.123456789"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].endswith("COST OF M OUT")
    tokens = usage["total"]["output_tokens"]
    assert shown[-1].split()[-1] == f"${0.123456789 / tokens * 1e6:,.2f}"
    prices = tmp_path / "prices.toml"
    prices.write_text('[[price]]\nmodel = "*"\ninput = 0\noutput = 0\n')
    checked = cost(capsys, "margin", str(ledger), "--hours", "1", "--rate", "1", "--price-list", str(prices))
    assert checked["repriced"] == 300
    assert checked["price_difference"] == -found["revenue"]
    with ledger.open(newline="") as file:
        lines = list(csv.reader(file))
    lines[-1][lines[0].index("created_at")] = "2027-01-01T00:00:00+00:00"
    with ledger.open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    assert main(["cost", "margin", str(ledger), "--hours", "9999", "--rate", "1"]) == 2
    assert "no call between" in capsys.readouterr().err


def test_update_replaces_the_rows_of_a_source(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source, out = tmp_path / "m.json", tmp_path / "prices.csv"
    source.write_text(
        '{"h/llama-3.3-70b": {"litellm_provider": "h", "input_cost_per_token": 1e-07,'
        ' "output_cost_per_token": 2e-07}}'
    )
    update = ["update", str(source), "--from", "litellm", "--version", "9", "--out", str(out)]
    assert cost(capsys, *update, "--date", "2026-11-20")["read"] == 1
    found = cost(capsys, "market", MODEL, "--prices", str(out))
    sources = {r["source"] for r in found["prices"]}
    assert "litellm 9" in sources
    assert "litellm 1.109.1" not in sources
    old = cost(capsys, *update, "--date", "2025-01-01")
    assert "2026-11-12, which are newer" in old["notes"][0]
    assert main(["cost", *update, "--date", "2999-01-01"]) == 2
    assert "future" in capsys.readouterr().err


def test_a_spreadsheet_s_mark_at_the_beginning_is_no_part_of_a_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "users.csv"
    rows = "".join(f"u{i},{('control', 'treatment')[i % 2]},{i % 7}\n" for i in range(100))
    file.write_text(f"user,arm,revenue\n{rows}", encoding="utf-8-sig")
    assert cost(capsys, "lift", str(file))["measured"]["users"] == {"control": 50, "treatment": 50}


def test_lift_reads_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "u.csv"
    arms = ("control", "treatment")
    users = [f"u{n},{arms[n % 2]},{n % 5},{n % 2 * (n % 3 > 0):d}" for n in range(400)]
    file.write_text("user,arm,revenue,exposed\n" + "\n".join(users) + "\n")
    found = cost(capsys, "lift", str(file), "--cost-user", "0.1")
    assert found["measured"]["cuped"] is None
    assert found["not_causal_exposed_usd"] is not None
    assert found["verdict"] == "not decided"
    assert main(["cost", "lift", str(file), "--cost-user", "0.1", "--planned", "400"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("pays from")
    assert out.index("could find") < out.index("as assigned")
    assert main(["cost", "lift", str(file), "--split", "0.9"]) == 2
    assert "randomisation is broken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "say which"),
        (["srve"], "did you mean 'serve'"),
        (["serve", "llama-9"], "no model 'llama-9'"),
        (["serve", MODEL], "do not fit"),
        ([*SERVE, "--rate", "-1"], "above 0"),
        ([*SERVE, "--rate", "free"], "a rate is one of"),
        ([*SERVE, "--rate", "nan"], "a rate is one of"),
        ([*SERVE, "--utilisation", "1.5"], "at most 1"),
        ([*SERVE, "--tok-s", "1e9"], "can do with this model"),
        ([*SERVE, "--set", "watt=3"], "did you mean 'watts'"),
        ([*SERVE, "--plot", "-", "--json"], "stdout for itself"),
        (["serve", MODEL, "--accelerator", "h900"], "no accelerator 'h900'"),
        (["serve", MODEL, "--bench", "x"], "--memory-gb"),
        (["serve", MODEL, "--bench", "x", "--memory-gb", "9", "--set", "watts=1"], "its own machine"),
        (["train", "llama-3.2-1b"], "say --tokens"),
        (["train", "llama-3.1-8b", "--mtbf", "0.01"], "leaves no time for work"),
        (["train", "llama-3.1-8b", "--mfu", "0"], "mfu must be"),
        (["compare", "smollm2"], "no row has a price"),
        (["compare", MODEL, "--tok-s", "9", "--n", "0"], "1 or more, got 0"),
        (["fleet", MODEL, "--n", "8", "--per-copy", "0"], "n must be 1 or more"),
        (["lift", "--self-test", "9", "--alpha", "2"], "alpha must be"),
        (["lift", "--self-test", "9", "--split", "0.3"], "--split is of FILE"),
        (["margin", "sqlite:///absent.db", "--hours", "1"], "there is no database absent.db"),
        (["compare", MODEL, "--plot", "x.gif"], "name it FILE.png"),
        (["margin", "{short}", "--hours", "1", "--since", "2026-11-01"], "are of a database"),
        (["compare", MODEL, "--ratio", "2"], "give --tok-s"),
        (["fleet", "llama-3.1-405b", "--n", "1"], "do not hold"),
        (["lift"], "give FILE or --self-test"),
        (["lift", "absent.csv"], "must be a file that can be read"),
        (["market", MODEL, "--prices", "{binary}"], "must be utf-8 text"),
        (["lift", "{short}"], "a cell for every column"),
        (["margin", "{short}", "--hours", "1"], "puna usage --csv"),
    ],
)
def test_bad_input_gets_one_sentence(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = {"{binary}": tmp_path / "binary", "{short}": tmp_path / "short.csv"}
    files["{binary}"].write_bytes(b"\xff\x00")
    files["{short}"].write_text("user,arm,revenue\nu1,control\n")
    argv = [str(files.get(text, text)) for text in argv]
    assert main(["cost", *argv]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert sentence in shown.err
    assert len(shown.err.splitlines()) == 1
