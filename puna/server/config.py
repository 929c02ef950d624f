"""What an operator can set; fields are named as in the configuration file and, with dashes, as flags."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.core import BadValue, closest
from puna.server.logs import FORMATS, LEVELS
from puna.server.traces import check_endpoint


def option(default: Any, text: str, metavar: str | None = None) -> Any:
    """A field whose help text the command line prints."""
    from dataclasses import field

    return field(default=default, metadata={"help": text, "metavar": metavar})


def check_range(config: Any, name: str, least: float, most: float) -> None:
    """Raise BadValue unless the field of that name lies between the two."""
    value = getattr(config, name)
    if not least <= value <= most:
        raise BadValue(f"{name} must be from {least:,} to {most:,}, got {value}")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Raises BadValue for values outside their range."""

    host: str = option("127.0.0.1", "address to listen on; any but a loopback one needs keys", "ADDRESS")
    port: int = option(8000, "port to listen on; 0 takes a free one", "N")
    require_keys: bool = option(False, "refuse requests without an API key on loopback, too")
    database: str = option("", "URL of the database of keys and usage (default: SQLite, user's data)", "URL")
    share_prefixes: bool = option(False, "let tenants find each other's prompts in the prefix cache")
    prices: str = option("", "price list (TOML) that usage is charged by", "FILE")
    safety: str = option("", "safety policies (TOML) that keys are held to", "FILE")
    memory: str = option("", "memory for all models together, 8GiB say (default: what is free)", "SIZE")
    idle_unload: float = option(0.0, "seconds after which an unused model is unloaded; 0: never", "SECONDS")
    any_model: bool = option(False, "serve every pulled model by its name, too, loaded when it is asked for")
    max_requests: int = option(1024, "requests in flight; more are told to come back (503)", "N")
    max_body_mb: int = option(32, "megabytes of a request's body", "N")
    max_file_mb: int = option(512, "megabytes of an uploaded file", "N")
    file_quota_mb: int = option(4096, "megabytes of all files of a tenant", "N")
    files_folder: str = option("", "folder of uploaded files (default: user's data)", "FOLDER")
    keep_stored_days: int = option(30, "days that files, batches, responses and conversations are kept", "N")
    batch_requests: int = option(4, "requests of batches that are answered at a time", "N")
    max_choices: int = option(16, "answers to one request (n)", "N")
    timeout: float = option(600.0, "seconds that a request may take, with its time in the queue", "SECONDS")
    stall_timeout: float = option(60.0, "seconds that a client may leave an answer unread", "SECONDS")
    grace: float = option(30.0, "seconds that requests have to finish after SIGTERM", "SECONDS")
    cors_origin: tuple[str, ...] = option((), "origin whose pages may call; may be repeated", "ORIGIN")
    image_host: tuple[str, ...] = option((), "host whose images may be fetched; may be repeated", "HOST")
    allow_pull: bool = option(False, "let admins pull and delete models over HTTP on any address")
    sessions: str = option("", "folder of saved sessions (POST /admin/sessions/save)", "FOLDER")
    max_session_mb: int = option(4096, "megabytes of a saved session", "N")
    server_name: tuple[str, ...] = option((), "name that browsers may call a server without keys by", "NAME")
    tls_cert: str = option("", "certificate chain (PEM) to serve HTTPS with", "FILE")
    tls_key: str = option("", "its private key (PEM)", "FILE")

    log_format: str = option("text", f"of the log: {' or '.join(FORMATS)}", "NAME")
    log_level: str = option("info", f"least that is logged: {', '.join(LEVELS)}", "NAME")
    log_prompts: bool = option(False, "put prompts and answers into the log")
    otel_endpoint: str = option("", "OTLP collector that traces go to, http://127.0.0.1:4318 say", "URL")
    otel_prompts: bool = option(False, "put prompts and answers into the traces")

    def __post_init__(self) -> None:
        for name, least, most in (
            ("port", 0, 65535),
            ("max_requests", 1, 1_000_000),
            ("max_body_mb", 1, 4096),
            ("max_file_mb", 1, 65_536),
            ("file_quota_mb", 1, 1 << 30),
            ("keep_stored_days", 1, 36_500),
            ("batch_requests", 1, 4096),
            ("max_choices", 1, 128),
            ("max_session_mb", 1, 1_000_000),
            ("timeout", 1, 7 * 86400),
            ("stall_timeout", 1, 86400),
            ("grace", 0, 86400),
            ("idle_unload", 0, 7 * 86400),
        ):
            check_range(self, name, least, most)
        for name, known in (("log_format", FORMATS), ("log_level", LEVELS)):
            if (value := getattr(self, name)) not in known:
                raise BadValue(
                    f"{name} must be one of {', '.join(known)}, got {value!r}{closest(value, known)}"
                )
        if self.sessions and not Path(self.sessions).is_dir():
            raise BadValue(f"sessions must be a folder that exists, got {self.sessions!r}; make it first")
        if bool(self.tls_cert) != bool(self.tls_key):
            missing = "tls_key" if self.tls_cert else "tls_cert"
            raise BadValue(f"HTTPS needs tls_cert and tls_key, {missing} is missing; give both or neither")
        if self.otel_endpoint:
            check_endpoint(self.otel_endpoint)
        if self.memory:
            parse_bytes("memory", self.memory)

    @property
    def memory_bytes(self) -> int | None:
        return parse_bytes("memory", self.memory) if self.memory else None

    @property
    def keeps_text(self) -> bool:
        """Whether the operator wants to see what is asked and answered."""
        return self.log_prompts or self.otel_prompts

    @property
    def is_loopback(self) -> bool:
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


_UNITS = {"": 1, "B": 1, **{p + "B": 1000**i for i, p in enumerate("KMGT", 1)}}
_UNITS |= {p + "IB": 1024**i for i, p in enumerate("KMGT", 1)}


def parse_bytes(what: str, text: str) -> int:
    """Bytes of a text such as "8GiB", "1.5 GB" or "900000000". Raises BadValue."""
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]{0,3})\s*", text)
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or float(found[1]) * unit < 1:
        raise BadValue(
            f"{what} must be a number of bytes, KiB, MiB, GiB, KB, MB or GB, like 8GiB, got {text!r}"
        )
    return int(float(found[1]) * unit)
