"""A moderation service elsewhere, of the form of OpenAI's /v1/moderations: OpenAI's own, or another Puna.

Whatever goes wrong is an error: a service that does not answer has not said "safe". There are no retries, as
whoever asks is waiting; redirects are not followed, and proxies and credentials of the environment are not
used, so that texts and key reach the named host and no other.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from puna import env
from puna.core import BadValue, WorkFailed
from puna.safety.classifiers.texts import last_text, readable
from puna.safety.scanners.libraries import need
from puna.safety.taxonomy import slug
from puna.safety.verdict import Turn, Verdict

if TYPE_CHECKING:
    import httpx

_MOST_TEXTS = 32  # of one request, as OpenAI's
_MOST_BYTES = 4 << 20  # of an answer
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Http:
    """One endpoint. Safe in any event loop; every judgement has a connection of its own."""

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None = None,
        seconds: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`key` goes out as "Authorization: Bearer", `seconds` bound one judgement.

        Raises BadValue for an address that is none, or would carry the key in the clear over a network;
        BadInput without httpx.
        """
        self._httpx = need("httpx", "httpx", "a moderation service")
        host = _checked_host(url, key)
        self.name = f"http:{host}#{model}"
        self._url, self._model, self._seconds = url, model, seconds
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._transport = transport
        # made once: reading the system's certificates takes tens of milliseconds
        self._tls = ssl.create_default_context() if url.startswith("https") else False

    @classmethod
    def from_spec(cls, spec: str) -> Http:
        """Of "URL#MODEL", with the key of PUNA_MODERATION_KEY. Raises BadValue."""
        url, _, model = spec.partition("#")
        if not model:
            raise BadValue(
                "http: must be followed by URL#MODEL, such as "
                f"https://api.openai.com/v1/moderations#omni-moderation-latest, got {spec!r:.100}"
            )
        return cls(url, model, env.moderation_key())

    async def judge(self, conversations: Sequence[Sequence[Turn]]) -> Sequence[Verdict]:
        """The service sees the last turn of each and nothing before it. Raises BadValue and WorkFailed."""
        texts = [readable(last_text(conversation, self.name)) for conversation in conversations]
        found: list[Verdict] = []
        try:
            async with asyncio.timeout(self._seconds), self._client() as client:
                for at in range(0, len(texts), _MOST_TEXTS):
                    found += await self._ask(client, texts[at : at + _MOST_TEXTS])
        except TimeoutError:
            raise WorkFailed(f"{self.name} did not answer within {self._seconds:g} s") from None
        except self._httpx.HTTPError as error:
            raise WorkFailed(f"{self.name} could not be asked: {type(error).__name__} {error}") from None
        return found

    def _client(self) -> httpx.AsyncClient:
        client: httpx.AsyncClient = self._httpx.AsyncClient(
            verify=self._tls, headers=self._headers, timeout=self._seconds, trust_env=False,
            follow_redirects=False, transport=self._transport,
        )  # fmt: skip
        return client

    async def _ask(self, client: httpx.AsyncClient, texts: Sequence[str]) -> Sequence[Verdict]:
        body = {"model": self._model, "input": list(texts)}
        async with client.stream("POST", self._url, json=body) as answer:
            raw = bytearray()
            async for piece in answer.aiter_bytes():
                raw += piece
                if len(raw) > _MOST_BYTES:
                    raise WorkFailed(f"{self.name} answered more than {_MOST_BYTES >> 20} MB")
        if answer.status_code != 200:
            raise WorkFailed(
                f"{self.name} answered {answer.status_code}: {raw.decode('utf-8', 'replace')!r:.200}"
            )
        return self._verdicts(bytes(raw), len(texts))

    def _verdicts(self, raw: bytes, n: int) -> Sequence[Verdict]:
        try:
            results = json.loads(raw)["results"]
            if len(results) != n:
                raise WorkFailed(f"{self.name} must give {n} results, gave {len(results)}")
            return [_verdict(result) for result in results]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise WorkFailed(
                f"{self.name} must answer as OpenAI's moderations, with results that have flagged and "
                f"categories, answered {raw.decode('utf-8', 'replace')!r:.200}"
            ) from None


def _checked_host(url: str, key: str | None) -> str:
    """Raises BadValue."""
    try:
        parts = urlsplit(url)
        host, good = parts.hostname, parts.scheme in ("http", "https") and parts.path.endswith("/moderations")
        _ = parts.port  # which urlsplit reads late
    except ValueError:
        host, good = None, False
    if not host or not good or not url.isascii() or not url.isprintable() or " " in url:
        raise BadValue(
            "a moderation service must be http(s)://HOST/…/moderations, such as "
            f"https://api.openai.com/v1/moderations, got {url!r:.100}"
        )
    if parts.username or parts.password or parts.query:
        raise BadValue(
            "a moderation service's address must have no password and no query; its key belongs in "
            "PUNA_MODERATION_KEY"
        )
    if key and not (key.isascii() and key.isprintable()):
        raise BadValue("a moderation service's key must be of ASCII letters, digits and signs")
    if key and parts.scheme == "http" and host not in _LOOPBACK:
        raise BadValue(f"a key must not go to {host} unencrypted; use https, or unset the key")
    return host


def _verdict(result: Mapping[str, Any]) -> Verdict:
    """Raises KeyError, TypeError and ValueError for what is no result."""
    flagged, categories, scores = result["flagged"], result["categories"], result.get("category_scores")
    if not isinstance(flagged, bool) or any(not isinstance(value, bool) for value in categories.values()):
        raise TypeError
    names = tuple(dict.fromkeys(slug(name) for name, value in categories.items() if value)) if flagged else ()
    score = float(flagged)
    if scores:
        numbers = [float(value) for value in scores.values() if value is not None]
        if any(not 0 <= value <= 1 for value in numbers):
            raise ValueError
        score = max(numbers, default=score)
    return Verdict(flagged, score, names)
