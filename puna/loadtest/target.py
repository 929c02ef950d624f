"""Where a server is."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from puna.core import BadInput, WorkFailed


@dataclass(frozen=True, slots=True)
class Target:
    """http(s)://host:port, with everything before `/chat/completions` in `base`."""

    host: str
    port: int
    base: str = "/v1"
    tls: ssl.SSLContext | None = None

    @classmethod
    def of(cls, url: str, verify: bool = True) -> Target:
        """From the URL of a server, with or without /v1. Raises BadInput."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise BadInput(f"URL must be http://HOST:PORT, found {url!r} ({error})") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInput(f"URL must be http://HOST:PORT or https://HOST, found {url!r}")
        if parts.username or parts.query or parts.fragment:
            raise BadInput("URL must have no user, query or fragment; an API key goes to --key")
        if not (url.isascii() and url.isprintable()) or " " in url:
            raise BadInput(f"URL must be printable ASCII without spaces, found {url!r}")
        tls = None
        if parts.scheme == "https":
            tls = ssl.create_default_context()
            if not verify:
                tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if tls else 80), f"{path}/v1", tls)

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def require_local(self) -> None:
        """Raise BadInput unless every address of the host's name is this machine's loopback."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise WorkFailed(
                f"URL must name a host that can be found, found {self.host!r} ({error})"
            ) from None
        for *_, address in found:
            if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
                raise BadInput(
                    f"{self.host} is {address[0]}, another machine: add --yes-remote if its owner "
                    "agrees to this load"
                )
