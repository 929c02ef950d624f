"""Recipes from YAML files and from key=value on the command line.

Errors say where: `schedule.peak must be …`. Whoever misspells a key is told the closest one there is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from puna.core import BadInput, BadValue, UnknownOption, closest
from puna.train.recipe.recipe import Recipe


@cache
def _adapter() -> TypeAdapter[Recipe]:
    return TypeAdapter(Recipe)


def schema() -> dict[str, Any]:
    """JSON Schema of recipes."""
    return _adapter().json_schema()


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A file with `a.b=value` changes, values as YAML. Raises BadValue and UnknownOption."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise BadValue(f"{path} must be a readable YAML file: {said}") from None
    if not isinstance(found, dict):
        raise BadValue(f"{path} must have keys and values, found {type(found).__name__}")
    for text in overrides:
        _override(found, text)
    return recipe_of(found, str(path))


def recipe_of(values: Mapping[str, Any], where: str) -> Recipe:
    """Raises BadValue and UnknownOption, with the place of what is wrong."""
    try:
        return _adapter().validate_json(json.dumps(values))
    except ValidationError as error:
        raise _explained(where, error) from None
    except BadValue as error:
        raise BadValue(f"{where}: {error}") from None
    except (TypeError, ValueError) as error:
        raise BadValue(f"{where} must have texts, numbers, lists and keys alone: {error}") from None


def _override(values: dict[str, Any], text: str) -> None:
    name, sign, given = text.partition("=")
    if not sign or not name:
        raise BadValue(f"a change must be key=value, like schedule.peak=3e-4, got {text!r}")
    try:
        value = _number(yaml.safe_load(given))
    except yaml.YAMLError:
        raise BadValue(f"{name} must be a YAML value, got {given!r}") from None
    *parents, last = name.split(".")
    at: Any = values
    for parent in parents:
        at = _child(at, parent, name)
    _set(at, last, value, name)


def _number(value: Any) -> Any:
    """YAML 1.1 reads 3e-4 as a text, as it has no point."""
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() else value
        except ValueError:
            return value
    return value


def _child(at: Any, part: str, name: str) -> Any:
    if isinstance(at, list):
        return at[_index(at, part, name)]
    return at.setdefault(part, {})


def _set(at: Any, part: str, value: Any, name: str) -> None:
    if isinstance(at, list):
        at[_index(at, part, name)] = value
    elif isinstance(at, dict):
        at[part] = value
    else:
        raise BadValue(f"{name}: there is nothing to set in {at!r}")


def _index(at: list[Any], part: str, name: str) -> int:
    if not part.isdigit() or int(part) >= len(at):
        raise BadValue(f"{name}: {part!r} must be a number from 0 to {len(at) - 1}, as it is one of a list")
    return int(part)


def _explained(where: str, error: ValidationError) -> BadInput:
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "unexpected_keyword_argument":
        known = _known(first["loc"][:-1])
        return UnknownOption(f"{where}: there is no {place!r}{closest(str(first['loc'][-1]), known)}")
    if first["type"] == "missing":
        return BadValue(f"{where}: {place} is missing")
    said = first["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return BadValue(f"{where}: {place} must be {said}, found {first['input']!r:.80}")


def _known(loc: Sequence[int | str]) -> list[str]:
    """Names of fields at a place of a recipe."""
    at: Any = Recipe
    for part in loc:
        if isinstance(part, int):
            continue
        hint = get_type_hints(at).get(part)
        at = next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)
    return [each.name for each in fields(at)] if at is not None else []
