"""How dataclasses of recipes are read: no key that they lack, no value of another type."""

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid", strict=True)
