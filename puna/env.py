"""The one file that reads environment variables; everything else gets its settings from here or from options.

PUNA_HOME      folder of the model store; default: the platform's folder for user data
PUNA_CPU       force a CPU target of the kernels (see `puna doctor` for those available)
PUNA_THREADS   threads that a model runs on; default: the physical cores
PUNA_MODERATION_KEY   what a moderation service elsewhere wants as "Authorization: Bearer"
NO_COLOR       any value but the empty one: no colours in a terminal (no-color.org)
TERM           "dumb" or none: a terminal that cannot move its cursor
RAY_USAGE_STATS_ENABLED   Ray's own; 0 unless it is set
HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and pip's own settings are read by those libraries themselves.
"""

from __future__ import annotations

import os
from pathlib import Path

from puna.core import BadValue


def home() -> Path | None:
    """Raises BadValue where no folder is, or can be made, of that name."""
    text = os.environ.get("PUNA_HOME")
    if not text:
        return None
    path = Path(os.path.expanduser(text)).absolute()
    there = next(place for place in (path, *path.parents) if os.path.exists(place))
    if not there.is_dir():
        raise BadValue(f"PUNA_HOME must be a folder, got {text!r}, and {there} is none; choose another one")
    return path


def cpu_target() -> str | None:
    return os.environ.get("PUNA_CPU") or None


def threads() -> int | None:
    text = os.environ.get("PUNA_THREADS")
    if not text:
        return None
    if not (text.isdecimal() and len(text) < 10 and 1 <= int(text) <= most_threads()):
        raise BadValue(
            f"PUNA_THREADS must be a whole number from 1 to {most_threads()} on this machine, got {text!r}; "
            "unset it to use all cores"
        )
    return int(text)


def most_threads() -> int:
    """More than this is a mistake: threads that wait for each other gain nothing from sharing a core."""
    return max(8, 2 * (os.cpu_count() or 1))


def moderation_key() -> str | None:
    return os.environ.get("PUNA_MODERATION_KEY") or None


def no_color() -> bool:
    return bool(os.environ.get("NO_COLOR"))


def is_dumb_terminal() -> bool:
    return os.environ.get("TERM", "dumb") == "dumb"


def keep_ray_quiet() -> None:
    """Ray reports its use to its makers unless told otherwise; whoever wants that sets the variable."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def for_child(**changes: str) -> dict[str, str]:
    """This process's environment with `changes`, for a child process."""
    return {**os.environ, **changes}
