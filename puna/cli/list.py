"""Show the models of this machine, or with --catalog every model that Puna knows by name."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from puna.cli.common import add_json, billions, print_json, print_table, size
from puna.cli.config_facts import config_report
from puna.model.catalog import ANNOUNCED, CATALOG
from puna.model.sizes import n_parameters

HELP = "show the models of this machine, or the catalog"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--catalog", action="store_true", help="every model that Puna knows by name")
    parser.add_argument("--markdown", action="store_true", help="the catalog as docs/models.md")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.markdown:
        from puna.cli.models_page import page

        print(page(), end="")
    elif args.catalog:
        _catalog(args.json)
    else:
        _stored(args.json)
    return 0


def _stored(as_json: bool) -> None:
    from puna.weights import store

    models = store.list_models()
    if as_json:
        rows = [{**asdict(model), "size": model.size, "path": str(model.path)} for model in models]
        print_json({"models": rows})
    elif models:
        print_table(
            ("NAME", "SIZE", "PULLED", "SOURCE"),
            [(model.name, size(model.size), model.date[:10], model.source) for model in models],
        )
    else:
        print("no models here yet; `puna pull smollm2` brings a small one")


def _catalog(as_json: bool) -> None:
    if as_json:
        rows = [{**asdict(entry), "config": config_report(entry.config)} for entry in CATALOG]
        print_json({"models": rows, "announced": [asdict(model) for model in ANNOUNCED]})
        return
    print_table(
        ("NAME", "PARAMETERS", "CONTEXT", "WEIGHTS", "PROMPTS", "LICENCE", "SOURCE"),
        [
            (
                entry.name,
                billions(n_parameters(entry.config)),
                str(entry.config.context_length),
                entry.weights,
                entry.chat_format,
                entry.licence,
                entry.source.text if entry.source else "-",
            )
            for entry in CATALOG
        ],
    )
