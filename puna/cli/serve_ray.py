"""`puna serve --ray`: replicas of the server on a Ray cluster, and the front before them."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna import env
from puna.core import BadInput

if TYPE_CHECKING:
    from puna.server.cluster.config import ClusterConfig
    from puna.server.config import ServerConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from puna.server.cluster.config import ClusterConfig

    group = parser.add_argument_group("replicas on a Ray cluster (pip install puna[ray])")
    group.add_argument(
        "--ray", action="store_true", help="serve from replicas; needs --database postgresql://…"
    )
    for field in fields(ClusterConfig):
        text = field.metadata["help"]
        if field.default:
            text += f" (default: {field.default:g})"
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            metavar=field.metadata["metavar"],
            type=type(field.default),
            default=field.default,
            help=text,
        )


def is_asked_for(args: argparse.Namespace) -> bool:
    """Raises BadInput for options of replicas without --ray."""
    from puna.server.cluster.config import ClusterConfig

    given = [field.name for field in fields(ClusterConfig) if getattr(args, field.name) != field.default]
    if given and not args.ray:
        raise BadInput(f"--{given[0].replace('_', '-')} is for replicas on a Ray cluster; add --ray")
    return bool(args.ray)


def serve_replicas(args: argparse.Namespace, config: ServerConfig) -> int:
    from puna.cli.serve import marks_of_all, open_accounts, say_marks

    cluster = _checked(args, config)
    open_accounts(config).close()  # keys are there where they must be, and the tables are up to date
    from puna.server.cluster.deploy import deployed
    from puna.server.cluster.front import Front, create_front
    from puna.server.cluster.routing import replica_names
    from puna.server.listen import bind
    from puna.server.logs import event, logging_to
    from puna.server.run import serve

    marks = marks_of_all(args)
    threads = args.threads or env.threads() or _default_threads()
    chosen = _for_replicas(args, threads)
    theirs = replace(config, cors_origin=(), prices=_absolute(config.prices), safety=_absolute(config.safety))

    def greet(url: str) -> None:
        text = f"Serving at {url}/v1 from {cluster.least} replicas (status: {url}/). Ctrl-C stops."
        event("start", text=text, url=url, replicas=cluster.least)
        say_marks(url, marks)

    with (
        bind(config) as bound,
        logging_to(form=config.log_format, level=config.log_level, shows_text=config.log_prompts),
        deployed(config, cluster, threads, partial(_serving, chosen, theirs)) as handle,
    ):
        front = Front(config, handle, replica_names)
        return serve(create_front(front), config, greet, bound)


def _serving(args: argparse.Namespace, config: ServerConfig) -> Any:
    """What a replica enters, in its own process."""
    from puna.cli.serve import serving

    return serving(args, config)


def _checked(args: argparse.Namespace, config: ServerConfig) -> ClusterConfig:
    from puna.server.cluster.config import ClusterConfig

    cluster = ClusterConfig(**{field.name: getattr(args, field.name) for field in fields(ClusterConfig)})
    if not config.database.startswith("postgresql"):
        raise BadInput(
            f"replicas share keys and ledger in PostgreSQL, got {config.database or 'no database'!r}; "
            "give --database postgresql://USER@HOST/NAME"
        )
    if find_spec("ray") is None:
        raise BadInput("--ray needs Ray Serve, which is not installed; run `pip install puna[ray]`")
    return cluster


def _default_threads() -> int:
    from puna.runtime.cpu import default_threads

    return default_threads()


def _for_replicas(args: argparse.Namespace, threads: int) -> argparse.Namespace:
    """The options as they mean the same in another folder, without what only this process can use."""
    from puna.server.cluster.config import ClusterConfig

    own = {"ray", *(field.name for field in fields(ClusterConfig))}
    plain = {name: value for name, value in vars(args).items() if name not in own and not callable(value)}
    models = [_absolute(model) for model in args.models]
    adapters = [_absolute(adapter) for adapter in args.adapter]
    mmproj = str(Path(args.mmproj).absolute()) if args.mmproj else None
    return argparse.Namespace(
        **{**plain, "models": models, "adapter": adapters, "mmproj": mmproj, "threads": threads}
    )


def _absolute(named: str) -> str:
    """[NAME=]PATH with the whole path, where it is one."""
    name, sign, path = named.rpartition("=")
    return f"{name}{sign}{Path(path).absolute()}" if Path(path).exists() else named
