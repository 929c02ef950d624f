"""The settings of `puna serve`: each flag is also a line of its TOML file, with underscores for dashes."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from puna.core import BadValue, UnknownOption, closest


@dataclass(frozen=True, slots=True)
class Setting:
    """A flag, as its parser knows it."""

    name: str
    kind: type  # bool, int, float, str, or list for a flag that may be repeated
    default: Any  # None: what `help` says
    help: str


def add_flags(parser: argparse.ArgumentParser) -> None:
    """All flags but --config, with their defaults."""
    from puna.cli import serve_ray
    from puna.cli.options import add_loading
    from puna.server.config import ServerConfig

    parser.add_argument(
        "--adapter",
        metavar="[MODEL:]NAME=PATH",
        action="append",
        default=[],
        help="low-rank adapter (PEFT folder or GGUF file) that requests call NAME; may be repeated",
    )
    parser.add_argument(
        "--batch",
        metavar="N",
        type=int,
        help="contexts that the cache has room for (default: up to 8, as memory allows)",
    )
    group = parser.add_argument_group("server")
    for field in fields(ServerConfig):
        flag, default = f"--{field.name.replace('_', '-')}", field.default
        assert default is not MISSING
        text, metavar = field.metadata["help"], field.metadata["metavar"]
        if isinstance(default, bool):
            group.add_argument(flag, action="store_true", help=text)
        elif isinstance(default, tuple):
            group.add_argument(flag, metavar=metavar, action="append", default=list(default), help=text)
        else:
            shown = text if default == "" else f"{text} (default: {default})"
            group.add_argument(flag, metavar=metavar, type=type(default), default=default, help=shown)
    add_loading(parser)
    serve_ray.add_arguments(parser)


def settings() -> dict[str, Setting]:
    """Every setting by its name, in the order of `puna serve --help`."""
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    found = {}
    for action in parser._actions:
        kind: Any = action.type or (list if isinstance(action.default, list) else str)
        if action.nargs == 0:  # a flag without a value
            kind = bool
        found[action.dest] = Setting(action.dest, kind, action.default, action.help or "")
    return found


def fill(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments with what the file and the defaults say where the command line says nothing (None).

    Raises what read_config raises.
    """
    known = settings()
    chosen = {name: setting.default for name, setting in known.items()}
    if args.config:
        chosen |= read_config(Path(args.config), known)
    given = {name: value for name, value in vars(args).items() if value is not None}
    return argparse.Namespace(**{**vars(args), **chosen, **given})


def read_config(path: Path, known: Mapping[str, Setting] | None = None) -> dict[str, Any]:
    """What a configuration file sets, each in the type of its flag.

    Raises UnknownOption for other names, and BadValue for values of another type or for what is no TOML.
    """
    known = settings() if known is None else known
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadValue(f"{path} must be a readable TOML file: {error}") from None
    for name in found:
        if name not in known:
            raise UnknownOption(f"{path}: there is no setting {name!r}{closest(name, list(known))}")
    return {name: _checked(path, known[name], value) for name, value in found.items()}


def _checked(path: Path, setting: Setting, value: Any) -> Any:
    """Raises BadValue."""
    if setting.kind is float and type(value) is int:
        value = float(value)
    is_good = type(value) is setting.kind
    if setting.kind is list:
        is_good = isinstance(value, list) and all(isinstance(item, str) for item in value)
    if not is_good:
        examples = {bool: "true or false", int: "a whole number", str: "a text", list: "a list of texts"}
        like = examples.get(setting.kind, "a number")
        if setting.kind is not bool and setting.default not in (None, "", []):
            like = f"like {setting.default!r}"
        raise BadValue(f"{path}: {setting.name} must be {like}, found {value!r}")
    return value
