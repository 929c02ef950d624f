"""Serve models over HTTP: chat and text completions, as clients of OpenAI's API ask for them.

  puna serve smollm2
  puna serve smollm2 --port 9000 --config serve.toml

Options of the server may also stand in a TOML file, under their names with underscores; options of the
command line win. Interrupt it, or send SIGTERM, to finish what is being answered and stop.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.cli import serve_ray
from puna.core import BadInput

if TYPE_CHECKING:
    from fastapi import FastAPI

    from puna.llm import LLM
    from puna.server.config import ServerConfig
    from puna.server.served import Models
    from puna.server.tenants.accounts import Accounts

HELP = "serve models over HTTP to clients of OpenAI's API"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from puna.cli.options import add_loading
    from puna.server.config import ServerConfig

    parser.add_argument("models", metavar="MODEL", nargs="+", help="name, .gguf file, folder or source")
    parser.add_argument(
        "--name",
        metavar="NAME",
        action="append",
        default=[],
        help="name in requests, once for each model",
    )
    parser.add_argument("--batch", metavar="N", type=int, help="contexts that the cache has room for")
    parser.add_argument("--config", metavar="FILE", help="settings of the server (TOML)")
    group = parser.add_argument_group("server")
    for field in fields(ServerConfig):
        flag, default = f"--{field.name.replace('_', '-')}", field.default
        assert default is not MISSING
        text = field.metadata["help"]
        if isinstance(default, bool):
            group.add_argument(flag, action="store_true", default=None, help=text)
        elif isinstance(default, tuple):
            group.add_argument(flag, metavar=field.metadata["metavar"], action="append", help=text)
        else:
            shown = text if default == "" else f"{text} (default: {default})"
            group.add_argument(flag, metavar=field.metadata["metavar"], type=type(default), help=shown)
    add_loading(parser)
    serve_ray.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    config = _config(args)
    if args.name and len(args.name) != len(args.models):
        raise BadInput(f"--name must come once for each of {len(args.models)} models, got {len(args.name)}")
    if serve_ray.is_asked_for(args):
        return serve_ray.run(args, config)
    from puna.server.run import serve

    with serving(args, config) as app:
        models = app.state.service.models
        return serve(app, config, lambda url: _greet(url, models))


@contextmanager
def serving(args: argparse.Namespace, config: ServerConfig) -> Iterator[FastAPI]:
    """The application with its models loaded, its accounts open and its log begun; all end with it."""
    from puna.llm.models import LoadedModels
    from puna.server.app import create_app
    from puna.server.logs import logging_to

    with logging_to(form=config.log_format, level=config.log_level, shows_text=config.log_prompts):
        accounts = open_accounts(config)
        try:
            models = LoadedModels(_load(args))
            try:
                for model in models.loaded().values():
                    model.speed.measure()
                yield create_app(config, models, accounts)
            finally:
                models.close()
        finally:
            accounts.close()


def open_accounts(config: ServerConfig) -> Accounts:
    """Keys, limits and ledger; raises BadInput where strangers could come in without a key."""
    from puna.server.storage.database import open_database
    from puna.server.tenants.accounts import Accounts
    from puna.server.tenants.prices import PriceList, read_prices

    prices = read_prices(Path(config.prices)) if config.prices else PriceList()
    requires_keys = config.require_keys or not config.is_loopback
    accounts = Accounts(open_database(config.database), prices, requires_keys=requires_keys)
    if requires_keys and not accounts.keys.list(is_active=True):
        accounts.close()
        raise BadInput(
            f"a server on {config.host} needs API keys, there are none; make one with "
            "`puna keys create --name NAME --tenant NAME`, or listen on 127.0.0.1"
        )
    return accounts


def _config(args: argparse.Namespace) -> ServerConfig:
    """The configuration file, and over it what the command line says."""
    from puna.server.config import ServerConfig, read_config

    found: dict[str, Any] = read_config(Path(args.config)) if args.config else {}
    for field in fields(ServerConfig):
        value = getattr(args, field.name)
        if value is not None:
            found[field.name] = tuple(value) if isinstance(value, list) else value
    return ServerConfig(**found)


def _load(args: argparse.Namespace) -> dict[str, LLM]:
    from puna.cli.options import load
    from puna.weights import store

    loaded: dict[str, LLM] = {}
    for i, model in enumerate(args.models):
        path = store.resolve(model)
        name = args.name[i] if args.name else _name_of(model)
        if name in loaded:
            raise BadInput(f"two models are called {name!r}; give each a --name of its own")
        loaded[name] = load(path, args, batch=args.batch)
    return loaded


def _name_of(model: str) -> str:
    """What requests call a model: a name as it is, a file or folder by its last part."""
    return Path(model).stem if model.endswith(".gguf") else Path(model).name


def _greet(url: str, models: Models) -> None:
    from importlib.metadata import version

    from puna.server.logs import event

    event(
        "start",
        text=f"Serving {models.default} at {url}/v1 (status: {url}/, documentation: {url}/docs). "
        "Ctrl-C stops.",
        url=url,
        version=version("puna"),
        models=[
            {"name": card.name, "file_bytes": card.size, "context": card.context} for card in models.cards()
        ],
    )
