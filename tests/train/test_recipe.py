"""Recipes: read, changed by key=value, refused with the place of what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from puna.core import BadInput
from puna.train.optim.groups import DEFAULT
from puna.train.optim.schedule import Schedule
from puna.train.recipe.read import read_recipe, schema

GOOD: dict[str, Any] = {
    "start": {"model": "smollm2"},
    "data": {
        "sources": [{"path": "a.txt"}, {"path": "b.jsonl", "kind": "chat", "weight": 2}],
        "row_tokens": 512,
    },
    "batch_tokens": 4096,
    "steps": 100,
    "schedule": {"peak": 0.001, "warmup": 10},
}


def read(tmp_path: Path, values: Any, *overrides: str) -> Any:
    path = tmp_path / "recipe.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return read_recipe(path, overrides)


def test_a_recipe_is_what_its_file_says(tmp_path: Path) -> None:
    found = read(tmp_path, GOOD)
    assert found.schedule == Schedule(0.001, warmup=10)
    assert (found.n_steps, found.n_rows, found.rules) == (100, 8, DEFAULT)
    assert [source.weight for source in found.data.sources] == [1, 2]
    jsonschema.validate(GOOD, schema())


def test_changes_of_the_command_line_win(tmp_path: Path) -> None:
    found = read(
        tmp_path, GOOD, "schedule.peak=3e-4", "data.sources.1.weight=5", "layout.shard=4", "steps=null",
        "tokens=1000000", 'rules=[{pattern: ".*", optimizer: muon}]',
    )  # fmt: skip
    assert found.schedule.peak == 3e-4
    assert found.data.sources[1].weight == 5
    assert found.layout.shard == 4
    assert found.n_steps == 245
    assert found.rules[0].optimizer == "muon"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("sheduler.peak=1", "there is no 'sheduler'"),
        ("schedule.peek=1", "there is no 'schedule.peek'; did you mean 'peak'"),
        ("data.sources.0.kin=text", "there is no 'data.sources.0.kin'; did you mean 'kind'"),
        ("data.sources.2.kind=text", "'2' must be a number from 0 to 1"),
        ("schedule.peak=fast", "schedule.peak must be number, found 'fast'"),
        ("steps=1.5", "steps must be"),
        ("data.sources.0.kind=csv", "data.sources.0.kind must be 'text', 'jsonl'"),
        ("schedule.peak=-1", "peak must be a learning rate above 0"),
        ("steps=null", "steps or tokens, one of them"),
        ("tokens=5", "steps or tokens, one of them"),
        ("batch_tokens=4000", "must be a number of rows of 512 tokens"),
        ("layout.shard=3", "make batch_tokens a multiple of 1536"),
        ("schedule.warmup=101", "take 101 steps, but there are only 100"),
        ("data.sources=[]", "at least one file"),
        ("start={}", "start.model is missing"),
        ("steps", "must be key=value"),
        ("steps=[", "must be a YAML value"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read(tmp_path, GOOD, change)


@pytest.mark.parametrize(
    ("text", "said"),
    [("[1", "must be a readable YAML file"), ("3", "must have keys and values, found int"),
     ("a: 2026-01-01", "must have texts, numbers")],
)  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read(tmp_path, text)
    with pytest.raises(BadInput, match=r"none\.yaml must be a readable"):
        read_recipe(tmp_path / "none.yaml")
