"""Where somebody is: codes of ISO 3166-1, who is in the European Union and in the European Economic Area."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import Literal

from puna.core import BadInput, closest

_PLACES = tomllib.loads((files(__package__) / "data" / "places.toml").read_text(encoding="utf-8"))
EU = frozenset(_PLACES["european_union"].split())
EEA = EU | frozenset(_PLACES["and_economic_area"].split())
COUNTRIES = frozenset(_PLACES["countries"].split())
_ALSO = {"UK": "GB", "EL": "GR", "EU": "EU", "EEA": "EEA"}
_NAMES = {
    "GERMANY": "DE", "FRANCE": "FR", "ITALY": "IT", "SPAIN": "ES", "IRELAND": "IE", "POLAND": "PL",
    "NETHERLANDS": "NL", "SWEDEN": "SE", "AUSTRIA": "AT", "BELGIUM": "BE", "GREECE": "GR", "EUROPE": "EU",
    "SWITZERLAND": "CH", "NORWAY": "NO", "UNITED KINGDOM": "GB", "ENGLAND": "GB", "UNITED STATES": "US",
    "USA": "US", "CANADA": "CA", "JAPAN": "JP", "CHINA": "CN", "INDIA": "IN", "BRAZIL": "BR",
}  # fmt: skip


def region(text: str) -> str:
    """A country's code as it is written here, or EU or EEA. Raises BadInput with the code that was meant."""
    code = text.strip().upper()
    code = _ALSO.get(code, code)
    if code in COUNTRIES or code in ("EU", "EEA"):
        return code
    meant = f"; did you mean {_NAMES[code]!r}?" if code in _NAMES else closest(code, sorted(_ALSO))
    raise BadInput(f"a region must be a country's two letters (DE, US), EU or EEA, got {text!r:.60}{meant}")


def in_eu(code: str) -> bool | None:
    """None where the code leaves it open."""
    return None if code == "EEA" else code == "EU" or code in EU


def entity(code: str) -> Literal["Meta Platforms Ireland Limited", "Meta Platforms, Inc."]:
    """Who of Meta the agreement is with."""
    is_near = code in EEA or code in ("EU", "EEA", "CH")
    return "Meta Platforms Ireland Limited" if is_near else "Meta Platforms, Inc."
