"""What `puna serve --ray` says before there is a cluster."""

from __future__ import annotations

import importlib.util

import pytest

from puna.cli import serve_ray
from puna.cli.main import main
from puna.core import BadValue
from puna.server.cluster.config import ClusterConfig

URL = "postgresql://puna@127.0.0.1:1/none"


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["serve", "tiny.gguf", *options]) == 2
    return capsys.readouterr().err


def test_replicas_need_ray(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--replicas is for replicas on a Ray cluster; add --ray" in refused(capsys, "--replicas", "2")
    assert "--max-replicas is for" in refused(capsys, "--max-replicas", "2")


def test_replicas_need_a_database_that_they_can_share(capsys: pytest.CaptureFixture[str]) -> None:
    assert "share keys and ledger in PostgreSQL, got 'no database'" in refused(capsys, "--ray")
    assert "got 'sqlite:///x'" in refused(capsys, "--ray", "--database", "sqlite:///x")


def test_ray_that_is_missing_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(serve_ray, "find_spec", lambda name: None if name == "ray" else find(name))
    assert "run `pip install puna[ray]`" in refused(capsys, "--ray", "--database", URL)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replicas": -1}, "replicas must be from 0 to 10,000, got -1"),
        ({"replicas": 2, "max_replicas": 3}, "give one or the other"),
        ({"min_replicas": 2}, "got 2 and 0"),
        ({"min_replicas": 3, "max_replicas": 2}, "got 3 and 2"),
        ({"min_replicas": 1, "max_replicas": 2, "target_requests": 0.0}, "target_requests must be from 0.1"),
    ],
)
def test_numbers_that_make_no_sense(values: dict[str, float], message: str) -> None:
    with pytest.raises(BadValue, match=message):
        ClusterConfig(**values)  # type: ignore[arg-type]


def test_how_many_replicas() -> None:
    assert (ClusterConfig().least, ClusterConfig().scales) == (1, False)
    assert (ClusterConfig(replicas=3).least, ClusterConfig(replicas=3).scales) == (3, False)
    both = ClusterConfig(min_replicas=2, max_replicas=5)
    assert (both.least, both.scales) == (2, True)
