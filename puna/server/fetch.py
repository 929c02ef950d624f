"""Fetching images that a request names by URL, from hosts that the operator has allowed and no others.

The address is resolved once, checked to be a public one, and connected to as checked: a name that resolves
differently the second time (DNS rebinding) gains nothing. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from urllib.parse import urlsplit

from puna.server.errors import ApiError, bad

_MAX_BYTES = 20 << 20
_TIMEOUT_S = 10.0
_MAX_HEAD = 32 << 10
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# the last 32 bits are an IPv4 address: NAT64 (RFC 6052, RFC 8215), and IPv4-compatible (RFC 4291)
_EMBEDDING = [ipaddress.IPv6Network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")]


async def fetch_image(url: str, allowed: Sequence[str], param: str) -> bytes:
    """The bytes behind an https or http URL. Raises ApiError 400 for whatever is wrong with it."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise bad(param, f"an image URL must be one, {url!r:.80} is not: {error}") from None
    host = parts.hostname or ""
    if host not in allowed:
        hosts = f"only from {', '.join(allowed)}" if allowed else "from no host"
        raise bad(
            param,
            f"this server fetches images {hosts}, found {host!r}; send the image as data:image/…;base64,…",
            code="image_url_not_allowed",
        )
    if parts.username or parts.password:
        raise bad(param, "an image URL must carry no user name or password, this one does")
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return await _get(parts.scheme == "https", host, parts.port, parts.path, parts.query, param)
    except TimeoutError:
        raise bad(param, f"{host} did not send the image within {_TIMEOUT_S:g} seconds") from None
    except (OSError, ssl.SSLError, asyncio.IncompleteReadError, ValueError) as error:
        raise bad(param, f"the image could not be fetched from {host}: {error}") from None


async def public_address(host: str, port: int) -> str:
    """An address of `host` that is public. Raises ValueError where it has a private one, or none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(item[4][0]) for item in found]
    for address in addresses:
        if not _is_public(ipaddress.ip_address(address)):
            raise ValueError(f"{host} has the address {address}, which is not a public one")
    if not addresses:
        raise ValueError(f"{host} has no address")
    return addresses[0]


def _is_public(ip: _Address) -> bool:
    """Also of what it carries: IPv4 in IPv6 is led on to by the host itself, or by a gateway near it."""
    if isinstance(ip, ipaddress.IPv6Address):
        found = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        found += [ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) for net in _EMBEDDING if ip in net]
        if not all(_is_public(inner) for inner in found if inner is not None):
            return False
        if ip.ipv4_mapped is not None:
            return True
        if ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast


async def _get(is_tls: bool, host: str, port: int | None, path: str, query: str, param: str) -> bytes:
    port = port or (443 if is_tls else 80)
    address = await public_address(host, port)
    context = ssl.create_default_context() if is_tls else None
    reader, writer = await asyncio.open_connection(
        address, port, ssl=context, server_hostname=host if is_tls else None, limit=_MAX_HEAD
    )
    try:
        target = (path or "/") + (f"?{query}" if query else "")
        if any(ch <= " " or ch > "~" for ch in target):
            raise ValueError("its path must be percent-encoded")
        name = host if port in (80, 443) else f"{host}:{port}"
        head = f"GET {target} HTTP/1.0\r\nHost: {name}\r\nAccept: image/*\r\n\r\n"
        writer.write(head.encode())
        status, _, _ = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
        code = status.split(b" ")[1:2]
        if code != [b"200"]:
            raise ApiError(
                400, f"{host} answered {status[:60].decode('latin-1')!r} for the image, not 200", param=param
            )
        data = bytearray()
        while chunk := await reader.read(1 << 16):
            data += chunk
            if len(data) > _MAX_BYTES:
                raise bad(param, f"an image may have {_MAX_BYTES:,} bytes, the one from {host} has more")
        return bytes(data)
    finally:
        writer.close()
