"""The address and the certificate of a server, both tried before anything that takes long is done."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from pathlib import Path

from puna.core import BadInput
from puna.server.config import ServerConfig


def bind(config: ServerConfig) -> socket.socket:
    """A socket with the server's address, which refuses whoever connects until somebody listens on it.

    Raises BadInput where the address cannot be had, and for a certificate or key that does not serve.
    """
    check_certificate(config)
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((config.host, config.port))
    except (OSError, ValueError) as error:  # ValueError: of what can be no name of a host
        found.close()
        raise cannot_listen(config, error) from None
    return found


def cannot_listen(config: ServerConfig, error: OSError | ValueError) -> BadInput:
    """What is wrong with the address, and which flag changes that."""
    place, code = f"{config.host}:{config.port}", getattr(error, "errno", None)
    if code == errno.EADDRINUSE:
        return BadInput(
            f"{place} must be free to listen on, it is not ({os.strerror(errno.EADDRINUSE)}); choose another "
            "--port, or 0 for any"
        )
    if code == errno.EACCES:
        return BadInput(
            f"{place} may not be listened on by this user, as ports below 1024 often may not; choose another "
            "--port"
        )
    reason = getattr(error, "strerror", None) or str(error)
    return BadInput(
        f"--host must be an address of this machine, got {config.host!r} ({reason}); 127.0.0.1 is for this "
        "machine alone, 0.0.0.0 for all of its addresses"
    )


def check_certificate(config: ServerConfig) -> None:
    """Raise BadInput, naming flag and file, unless HTTPS can be served with what the configuration names."""
    if not config.tls_cert:
        return
    chain = _read("--tls-cert", config.tls_cert)
    _read("--tls-key", config.tls_key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(cadata=chain.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise BadInput(
            f"--tls-cert must be a file of certificates in PEM, {config.tls_cert} has none that can be read"
        ) from None

    def no_password() -> str:
        raise BadInput(
            f"--tls-key must be a key without a password, {config.tls_key} is encrypted; `openssl pkey` "
            "decrypts it"
        )

    try:
        context.load_cert_chain(config.tls_cert, config.tls_key, no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise BadInput(
                f"--tls-key must be the key of the certificate, and {config.tls_key} is that of another one "
                f"than {config.tls_cert}"
            ) from None
        if error.reason is not None and error.library == "SSL" and error.reason != "PEM_LIB":
            raise BadInput(
                f"--tls-cert must be a certificate that may be served, and {config.tls_cert} is none: "
                f"{error.reason.lower().replace('_', ' ')}"
            ) from None
        raise BadInput(
            f"--tls-key must be a file of a private key in PEM, {config.tls_key} has none that can be read"
        ) from None


def _read(flag: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"{flag} must be a file that can be read, got {path!r}: {reason}") from None
