"""Serve models over HTTP to clients of OpenAI's, Anthropic's, Ollama's and Meta's APIs (docs/api.md).

  puna serve smollm2
  puna serve smollm2 --port 9000 --config serve.toml
  puna serve smollm2 --adapter pirate=./pirate-lora
  puna serve small=smollm2 large=./model.gguf --memory 8GiB --idle-unload 600

Of several models, the first is the default; as many as fit into the memory are loaded at once, the others
when they are asked for, in the place of those that nobody uses.

Each option may also stand in a TOML file, under its name with underscores (a list where it may be repeated);
options of the command line win. Interrupt it, or send SIGTERM, to finish what is being answered and stop.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.cli import serve_ray, serve_settings
from puna.core import BadInput, closest

if TYPE_CHECKING:
    from fastapi import FastAPI

    from puna.llm.adapted import AdaptedModels
    from puna.server.config import ServerConfig
    from puna.server.served import Models
    from puna.server.tenants.accounts import Accounts

HELP = "serve models over HTTP to clients of OpenAI's, Anthropic's, Ollama's and Meta's APIs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        metavar="[NAME=]MODEL",
        nargs="+",
        help="name, .gguf file, folder or source; NAME is what requests call it",
    )
    parser.add_argument("--config", metavar="FILE", help="settings (TOML): flags, with underscores")
    serve_settings.add_flags(parser)
    parser.set_defaults(**dict.fromkeys(serve_settings.settings()))  # None: the file may say it


def run(args: argparse.Namespace) -> int:
    args = serve_settings.fill(args)
    config = _config(args)
    if serve_ray.is_asked_for(args):
        return serve_ray.serve_replicas(args, config)
    from puna.server.listen import bind
    from puna.server.run import serve

    with bind(config) as bound, serving(args, config) as app:
        models = app.state.service.models
        return serve(app, config, lambda url: _greet(url, models), bound)


@contextmanager
def serving(args: argparse.Namespace, config: ServerConfig) -> Iterator[FastAPI]:
    """The application with its models loaded, its accounts open and its log begun; all end with it.

    What can be said without a model is said before one is loaded.
    """
    from puna.llm.library import StoreLibrary
    from puna.server.app import create_app
    from puna.server.logs import logging_to
    from puna.server.service import files_folder
    from puna.server.storage.files import check_folder
    from puna.server.traces import require_packages

    adapters = [_adapter(text) for text in args.adapter]
    for _, name, path in adapters:
        if not path.exists():
            raise BadInput(f"--adapter must be a folder or file, {str(path)!r} (for {name}) is not there")
    check_folder(files_folder(config))
    if config.safety:
        _check_safety(args, config, [name for _, name, _ in adapters])
    if config.otel_endpoint:
        require_packages()
    with logging_to(form=config.log_format, level=config.log_level, shows_text=config.log_prompts):
        accounts = open_accounts(config)
        try:
            pool = _pool(args, config)
            try:
                pool.preload(adapters)
                yield create_app(config, pool, accounts, StoreLibrary())
            finally:
                pool.close()
        finally:
            accounts.close()


def _check_safety(args: argparse.Namespace, config: ServerConfig, adapters: list[str]) -> None:
    """Raises BadInput for a file of policies that this server could not follow."""
    from puna.llm.facts import facts_of
    from puna.safety.classifiers import make
    from puna.safety.llama_guard import is_guard, versions
    from puna.safety.policy import read_policies
    from puna.server.safety.judges import check_guards
    from puna.weights import store

    others = [stored.name for stored in store.list_models()] if config.any_model else []
    policies = read_policies(Path(config.safety))
    models = dict(_models(args.models))
    check_guards(policies, [*models, *adapters, *others])
    for name in policies.guards:
        if name in models and not is_guard(facts_of(models[name]).template):
            raise BadInput(
                f"a safety policy asks guard:{name}, but {name} is no guard, its chat template has no "
                "categories; serve a Llama Guard with its template"
            )
    made = {spec: make(spec) for spec in policies.others}
    of_guards = {one.word for version in versions().values() for one in version.categories}
    for policy in policies.policies.values():
        # a service or an encoder may name what it likes
        known = [
            getattr(made.get(spec), "categories", None if spec in made else of_guards)
            for spec in policy.judges
        ]
        names = {name for each in known if each is not None for name in each}
        for name in policy.categories or ():
            if None not in known and name not in names:
                raise BadInput(
                    f"the safety policy {policy.name!r} counts {name!r}, which none of its judges names"
                    f"{closest(name, sorted(names))}"
                )


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
    """Raises BadValue."""
    from puna.server.config import ServerConfig

    found: dict[str, Any] = {}
    for field in fields(ServerConfig):
        value = getattr(args, field.name)
        found[field.name] = tuple(value) if isinstance(value, list) else value
    return ServerConfig(**found)


def _pool(args: argparse.Namespace, config: ServerConfig) -> AdaptedModels:
    """The models of a server, not loaded yet."""
    from puna.cli.options import loading_options
    from puna.llm import backend
    from puna.llm.adapted import AdaptedModels
    from puna.llm.budget import Budget, LLMLoader
    from puna.llm.config import LLMConfig
    from puna.llm.models import ModelPool
    from puna.weights import store

    def find(name: str) -> tuple[str, Path] | None:
        stored = store.find(name)
        return None if stored is None else (stored.name, store.resolve(stored.name))

    def others() -> list[tuple[str, Path]]:
        return [(stored.name, stored.path) for stored in store.list_models()]

    options = {**loading_options(args), "batch": args.batch}
    models = _models(args.models)
    total = config.memory_bytes or backend.available(backend.choose(LLMConfig(**options)))
    budget = Budget(total, len(models) + config.any_model)
    more: dict[str, Any] = {"find": find, "others": others} if config.any_model else {}
    loader = LLMLoader(**options)
    return AdaptedModels(ModelPool(models, loader, budget, idle_s=config.idle_unload, **more))


def _models(arguments: list[str]) -> list[tuple[str, Path]]:
    """What requests call each model, and where it is."""
    from puna.weights import store

    found: dict[str, Path] = {}
    for argument in arguments:
        name, model = _split(argument)
        if name in found:
            raise BadInput(f"two models are called {name!r}; give one another name: NAME={model}")
        found[name] = store.resolve(model)
    return list(found.items())


def _split(argument: str) -> tuple[str, str]:
    """NAME=MODEL in its parts; a MODEL alone gets the name that it has."""
    name, is_named, model = argument.partition("=")
    if not is_named or Path(argument).exists():
        return _name_of(argument), argument
    from puna.llm.adapted import NAME

    if not NAME.fullmatch(name):
        raise BadInput(f"a name must be letters, digits and . _ - /, at most 96 of them, got {name!r}")
    return name, model


def _adapter(text: str) -> tuple[str | None, str, Path]:
    """[MODEL:]NAME=PATH in its parts."""
    name, _, path = text.partition("=")
    if not name or not path:
        raise BadInput(f"--adapter must be NAME=PATH or MODEL:NAME=PATH, got {text!r}")
    base, _, own = name.rpartition(":")
    return base or None, own, Path(path).expanduser()


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
    say_marks(url, [(card.name, card.marks) for card in models.cards()])


def say_marks(url: str, served: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Log what the licences of models want shown: each model by its name, with the phrases of its licence."""
    from puna.server.logs import event

    for mark in dict.fromkeys(mark for _, marks in served for mark in marks):
        named = [name for name, marks in served if mark in marks]
        event(
            "licence",
            text=f"{mark}: the licence of {', '.join(named)} wants this shown to users. {url}/ shows it; "
            "pages and interfaces of your own have to as well. No legal advice: see `puna license check`.",
            mark=mark,
            models=named,
        )


def marks_of_all(args: argparse.Namespace) -> list[tuple[str, tuple[str, ...]]]:
    """Of models and adapters that are to be served, without loading any."""
    from puna.llm.terms import marks_of

    adapters = [(name, path) for _, name, path in map(_adapter, args.adapter)]
    return [(name, marks_of(path)) for name, path in (*_models(args.models), *adapters)]
