"""A server over the tiny model, on a port of its own, for real clients."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

import httpx
import pytest
from fastapi import FastAPI
from llm.tiny_llm import write_tiny_llm
from llm.tiny_vision import LLAMA4, TEMPLATE, TOKENS, let_see
from openai import OpenAI
from server.databases import database as database
from server.databases import postgres as postgres
from server.databases import url as url

from puna import LLM
from puna.llm.adapted import AdaptedModels
from puna.llm.budget import Budget, LLMLoader
from puna.llm.models import ModelPool
from puna.server.app import create_app
from puna.server.config import ServerConfig
from puna.server.run import serve
from puna.server.service import Service
from puna.server.storage.database import open_database
from puna.server.tenants.accounts import Accounts
from puna.server.tenants.prices import PriceList


@dataclass
class Running:
    """A server in a thread, and the model it serves."""

    url: str
    app: FastAPI
    llm: LLM
    models: AdaptedModels

    @property
    def service(self) -> Service:
        service: Service = self.app.state.service
        return service

    def openai(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def post(self, path: str, body: object) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("served") / "tiny.gguf")


def open_accounts(
    folder: Path,
    prices: PriceList | None = None,
    *,
    requires_keys: bool = False,
    journal: str = "journal",
) -> Accounts:
    """Accounts with a database and a journal of their own."""
    database = open_database(f"sqlite:///{folder}/puna.db")
    return Accounts(database, prices or PriceList(), requires_keys=requires_keys, journal=folder / journal)


class LoadedAlready(LLMLoader):
    """Gives out one model that a test has loaded."""

    def __init__(self, llm: LLM) -> None:
        super().__init__()
        self._llm = llm

    def load(self, path: Path, room: int | None, progress: object) -> LLM:
        return self._llm


def one_model(name: str, llm: LLM) -> AdaptedModels:
    """The models of a server that has this one alone."""
    return AdaptedModels(ModelPool([(name, llm.path)], LoadedAlready(llm), Budget(None)))


Start = Callable[..., Running]


@pytest.fixture(scope="module")
def start(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts servers with a configuration of their own; all stop at the end of the module."""
    begun: list[tuple[Running, threading.Thread]] = []

    def run(
        config: ServerConfig,
        accounts: Accounts | None = None,
        name: str = "tiny",
        llm: LLM | None = None,
        path: Path | None = None,
        models: AdaptedModels | None = None,
    ) -> Running:
        own = accounts or open_accounts(tmp_path_factory.mktemp("ledger"))
        if not config.files_folder:
            config = replace(config, files_folder=str(tmp_path_factory.mktemp("stored") / "files"))
        if models is None:
            llm = llm or LLM(path or tiny_path, threads=1, batch=64)
            models = one_model(name, llm)
        models.preload()
        llm = models.loaded()[models.default]
        app = create_app(config, models, own)
        urls: SimpleQueue[str] = SimpleQueue()
        thread = threading.Thread(target=serve, args=(app, config, urls.put), daemon=True)
        thread.start()
        running = Running(urls.get(timeout=30), app, llm, models)
        begun.append((running, thread))
        return running

    yield run
    for running, thread in begun:
        running.service.is_draining = True
        for call in list(running.service.calls):  # of clients that a test has left behind
            call.cancel()
        thread.join(40)
        assert not thread.is_alive()
        running.models.close()
        running.service.accounts.close()


@pytest.fixture(scope="module")
def seeing(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Running:
    """A server whose model takes pictures; what it answers does not depend on them."""
    path = tmp_path_factory.mktemp("models") / "llama4.gguf"
    write_tiny_llm(path, template=TEMPLATE, control=TOKENS["llama4"], context=2048)
    llm = LLM(path, threads=1, batch=64)
    let_see(llm, LLAMA4)
    return start(ServerConfig(port=0), llm=llm)


@pytest.fixture(scope="module")
def server(start: Start) -> Running:
    return start(ServerConfig(port=0))
