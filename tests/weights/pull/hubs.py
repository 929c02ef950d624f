"""A fake hub that huggingface_hub is pointed at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from weights.fake_hub import FakeHub


@contextmanager
def serve(monkeypatch: pytest.MonkeyPatch, repos: dict[str, dict[str, bytes]]) -> Iterator[FakeHub]:
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    hub = FakeHub(repos)
    server = hub.start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield hub
    close_session()
    server.shutdown()
    server.server_close()
