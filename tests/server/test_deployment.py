"""examples/serve: each file is read by what it is for, or its parser, and held against the server.

Run as a program, this writes puna.toml.
"""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from puna.cli import serve
from puna.cli.serve_settings import fill, read_config, settings
from puna.core import BadValue, UnknownOption
from puna.server.config import ServerConfig

if TYPE_CHECKING:
    from server.conftest import Running

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "serve"
CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 4,
    "ignore_eos": True,
}


EXAMPLES = {  # of settings whose default is no value but what their help says
    "batch": 16,
    "context": 8192,
    "threads": 8,
    "mmproj": "mmproj-model.gguf",
    "chat_format": "llama3.1",
    "draft": "smollm2",
}


def sample() -> str:
    """puna.toml: every setting with its default."""
    parts = ["# Settings of `puna serve --config puna.toml`: all that there are, with their defaults.\n"]
    for setting in settings().values():
        is_example = setting.default is None
        value = EXAMPLES[setting.name] if is_example else setting.default
        text = setting.help if is_example else setting.help.removesuffix(f" (default: {value})")
        parts.append(f"# {text}{'; for example' * is_example}\n#{setting.name} = {json.dumps(value)}\n")
    return "\n".join(parts)


def parsed(command: list[str]) -> Any:
    """What `puna` makes of the arguments of a command."""
    from puna.cli.main import Parser

    name, *rest = command
    parser = Parser(f"puna {name}", "")
    import_module(f"puna.cli.{name}").add_arguments(parser)
    return parser.parse(rest)


def test_the_sample_of_settings(tmp_path: Path) -> None:
    text = (FOLDER / "puna.toml").read_text("utf-8")
    assert text == sample(), "run python tests/server/test_deployment.py"
    path = tmp_path / "puna.toml"
    path.write_text(re.sub(r"^#(?=\w)", "", text, flags=re.MULTILINE))
    found = read_config(path)
    assert list(found) == list(settings())
    given = parsed(["serve", "tiny", "--config", str(path)])
    filled = vars(fill(given))
    plain = vars(fill(parsed(["serve", "tiny"])))
    assert filled == {**plain, **EXAMPLES, "config": str(path)}
    assert serve._config(fill(given)) == ServerConfig()


def test_a_flag_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "puna.toml"
    path.write_text(
        'prefer = "throughput"\ncache_type = "q8_0"\ncontext = 512\ndraft = "small"\nbatch = 3\nthreads = 2\n'
        'no_speculation = true\nadapter = ["a=./a", "b=./b"]\nserver_name = ["x"]\nray = true\nreplicas = 2\n'
    )
    flags = ["--cache-type", "bf16", "--adapter", "c=./c", "--context", "256", "--replicas", "3"]
    found = fill(parsed(["serve", "tiny", "--config", str(path), *flags]))
    assert (found.prefer, found.draft, found.batch, found.threads) == ("throughput", "small", 3, 2)
    assert (found.cache_type, found.context, found.replicas) == ("bf16", 256, 3)  # bf16 is the default, too
    assert (found.no_speculation, found.ray, found.port) == (True, True, 8000)
    assert (found.adapter, found.server_name) == (["c=./c"], ["x"])
    for line, message in (
        ("context = '5'", "context must be a whole number, found '5'"),
        ("adapter = 'a=./a'", "adapter must be a list of texts, found"),
        ("ray = 1", "ray must be true or false, found 1"),
        ("mmproj = false", "mmproj must be a text, found False"),
        ("prefer = 3", "prefer must be like 'latency', found 3"),
    ):
        path.write_text(line)
        with pytest.raises(BadValue, match=message):
            read_config(path)
    path.write_text("treads = 4")
    with pytest.raises(UnknownOption, match="no setting 'treads'; did you mean 'threads'"):
        read_config(path)


class Unit(configparser.RawConfigParser):
    def optionxform(self, optionstr: str) -> str:
        return optionstr


@pytest.fixture(scope="module")
def unit() -> Unit:
    read = Unit(strict=True, interpolation=None)
    read.read_string((FOLDER / "puna.service").read_text("utf-8"))
    return read


def test_the_unit_fits_the_server(unit: Unit) -> None:
    service = unit["Service"]
    program, *command = shlex.split(service["ExecStart"])
    assert program.endswith("/puna")
    assert parsed(command).config == "/etc/puna/puna.toml"
    # no answer is cut off by systemd that the server would have finished
    assert int(service["TimeoutStopSec"]) > ServerConfig().grace + 5
    assert service["KillSignal"] == "SIGTERM"
    assert service["Environment"] == f"PUNA_HOME=/var/lib/{service['StateDirectory']}"
    assert service["RestartPreventExitStatus"] == "2"  # BadInput
    assert service["User"] not in ("", "root")
    for name in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "RestrictSUIDSGID", "LockPersonality"):
        assert service.getboolean(name), name
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""


def test_systemd_reads_the_unit(unit: Unit, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = (FOLDER / "puna.service").read_text("utf-8")
    program = shlex.split(unit["Service"]["ExecStart"])[0]
    here = tmp_path / "puna.service"
    here.write_text(text.replace(program, sys.executable))  # which is there
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(here)], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if "puna.service" in line]
    assert (done.returncode, complaints) == (0, [])
    here.write_text(text.replace("ProtectSystem=strict", "ProtectSystems=strict"))  # what it would say
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(here)], capture_output=True, text=True, check=False
    )
    assert "ProtectSystems" in done.stderr


@pytest.fixture(scope="module")
def steps() -> list[Any]:
    parser = pytest.importorskip("dockerfile", reason="needs dockerfile, Docker's own parser")
    return list(parser.parse_file(str(FOLDER / "Dockerfile")))


def test_the_dockerfile(steps: list[Any]) -> None:
    """What hadolint would say, as far as this file goes, and that it fits the repository."""
    names = [step.cmd.upper() for step in steps]
    assert names.count("FROM") == 2
    assert "ADD" not in names
    assert not set(names) & {"MAINTAINER", "ONBUILD"}
    bases = [step.value[0] for step in steps if step.cmd.upper() == "FROM"]
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    for base in bases:
        found = re.fullmatch(r"python:3\.(\d+)-slim-\w+", base)
        assert found, base
        assert int(found[1]) >= int(pyproject["project"]["requires-python"].removeprefix(">=3."))
    assert len(set(bases)) == 1  # the environment is made for the interpreter that it runs on
    last = {step.cmd.upper(): step for step in steps}
    assert last["USER"].value[0].isdecimal()
    assert int(last["USER"].value[0]) > 0
    for name in ("ENTRYPOINT", "CMD", "HEALTHCHECK"):
        assert last[name].json, f"{name} without a shell"
    for step in steps:
        if step.cmd.upper() == "COPY" and not step.flags:
            assert all((ROOT / source).exists() for source in step.value[:-1]), step.original
        if "apt-get install" in step.original:
            assert "--no-install-recommends" in step.original
            assert "rm -rf /var/lib/apt/lists" in step.original
    asked = {
        extra
        for step in steps
        for group in re.findall(r"\.\[([\w,]+)\]", step.original)
        for extra in group.split(",")
    }
    assert asked
    assert asked <= set(pyproject["project"]["optional-dependencies"])
    assert list(last["ENTRYPOINT"].value) == ["puna"]
    assert parsed(list(last["CMD"].value)).host == "0.0.0.0"
    comments = (FOLDER / "Dockerfile").read_text("utf-8")
    for command in re.findall(r"^#   docker run .* puna (\w+ .*)$", comments, flags=re.MULTILINE):
        assert parsed(shlex.split(command))


def test_the_health_check_tells_life_from_death(server: Running, steps: list[Any]) -> None:
    check = next(step for step in steps if step.cmd.upper() == "HEALTHCHECK")
    _, python, option, program = check.value
    assert (python, option) == ("python", "-c")
    alive = program.replace("http://127.0.0.1:8000", server.url)
    assert alive != program
    dead = program.replace(":8000/", ":1/")
    assert subprocess.run([sys.executable, "-c", alive], check=False).returncode == 0
    assert subprocess.run([sys.executable, "-c", dead], check=False, capture_output=True).returncode != 0


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression of the dashboard and the alerts, with where it stands."""
    yaml = pytest.importorskip("yaml")
    for panel in json.loads((FOLDER / "grafana.json").read_text("utf-8"))["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text("utf-8"))["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def test_dashboard_and_alerts_ask_for_what_there_is(server: Running) -> None:
    """Prometheus' grammar, and names and labels of a real scrape after a call and a refusal."""
    promql = pytest.importorskip("promql_parser", reason="needs promql-parser")
    assert server.post("/v1/chat/completions", CHAT).status_code == 200
    assert server.post("/v1/chat/completions", {}).status_code == 400
    labels: dict[str, set[str]] = {"up": set()}
    for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text):
        for found in family.samples:
            labels.setdefault(found.name, set()).update(found.labels)
    labels |= {  # there once the first second of steps has been looked at
        name: {"model"} for name in ("puna_engine_limit_seconds_total", "puna_engine_limit_ratio")
    }
    asked = list(expressions())
    assert len(asked) > 30
    for where, expression in asked:
        promql.parse(expression.replace("$__rate_interval", "1m"))
        names = re.findall(r"\b((?:puna|process)_\w+|up)\b(?:\{([^}]*)\})?", expression)
        assert names, where
        for name, matchers in names:
            assert name in labels, f"{where}: {name}"
            used = set(re.findall(r"(\w+)\s*=", matchers)) - {"instance", "job"}
            assert used <= labels[name], f"{where}: {name}{used}"
        for group in re.findall(r"\bby \(([^)]*)\)", expression):
            wanted = {label.strip() for label in group.split(",")} - {"instance"}
            assert wanted <= set.union(*(labels[name] for name, _ in names)), where


def test_prometheus_finds_the_alerts() -> None:
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text("utf-8"))
    assert all((FOLDER / name).exists() for name in config["rule_files"])
    target = config["scrape_configs"][0]["static_configs"][0]["targets"][0]
    assert target == f"{ServerConfig().host}:{ServerConfig().port}"


if __name__ == "__main__":
    (FOLDER / "puna.toml").write_text(sample(), "utf-8")
