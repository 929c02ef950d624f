"""Formats of texts as patterns, where llguidance has none; each allows a part of what its standard does.

What a pattern allows is what models need to write, not every corner of a grammar: a regular expression has
groups two deep, for one.
"""

from __future__ import annotations

# Known to llguidance by name.
NAMED = frozenset(("duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"))
# What is allowed by the second is allowed by the first.
NARROWER = {"iri": "uri", "idn-email": "email", "idn-hostname": "hostname"}

# RFC 3339. llguidance's own have a 29th of February in every year, and a second 60 in every minute.
_YEAR = "[1-9][0-9]{3}"
_LEAP_YEAR = "(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_HOUR, _SIXTY = "(?:[01][0-9]|2[0-3])", "[0-5][0-9]"
_TIME = f"{_HOUR}:{_SIXTY}:{_SIXTY}(?:\\.[0-9]{{1,9}})?(?:Z|[+-]{_HOUR}:{_SIXTY})"

_PCHAR = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_SEGMENT_WITHOUT_COLON = r"(?:[A-Za-z0-9._~!$&'()*+,;=@-]|%[0-9A-Fa-f]{2})+"
_URI_REFERENCE = (  # RFC 3986, 4.2: of relative-part, path-absolute, path-noscheme and path-empty
    rf"(?:/(?:{_PCHAR}+(?:/{_PCHAR}*)*)?|{_SEGMENT_WITHOUT_COLON}(?:/{_PCHAR}*)*)?"
    rf"(?:\?(?:{_PCHAR}|[/?])*)?(?:#(?:{_PCHAR}|[/?])*)?"
)
_POINTER = r"(?:/(?:[^~/\x00-\x1f]|~[01])*)*"  # RFC 6901
_RELATIVE = rf"(?:0|[1-9]{{1,2}})(?:#|{_POINTER})"
_VARIABLE = r"\{[A-Za-z_][A-Za-z0-9_]*(?:,[A-Za-z_][A-Za-z0-9_]*)*\}"  # RFC 6570, level 1 and lists
_TEMPLATE = rf"(?:[A-Za-z0-9._~!$&()*+,;=:@/?#-]|{_VARIABLE})*"


def _regex() -> str:
    """Regular expressions that ECMA 262, Python and Rust all read."""
    # No ASCII character is taken as it is that may mean something anywhere.
    literal = r"[A-Za-z0-9 _,:;@=<>!%&'\"/#~`]|[^\x00-\x7f]"
    escape = r"\\[dDwWsSnrt.*+?()\[\]{}|^$\\/-]"
    members = r"[A-Za-z0-9 _.,:;@=*+?()/]|a-z|A-Z|0-9|\\[dws.\\\]\[/-]"
    atom = rf"(?:{literal}|{escape}|\.|\[\^?(?:{members})+\])"
    times = r"(?:[*+?]|\{[1-9]\}|\{[1-3],[4-9]\})?"
    for _ in range(2):
        branch = rf"(?:{atom}{times})*"
        atom = rf"(?:{atom}|\((?:\?:)?{branch}(?:\|{branch})*\))"
    branch = rf"(?:{atom}{times})*"
    return rf"\^?{branch}(?:\|{branch})*\$?"


PATTERNS = {
    name: f"^(?:{pattern})$"
    for name, pattern in {
        "date": _DATE,
        "time": _TIME,
        "date-time": f"{_DATE}T{_TIME}",
        "uri-reference": _URI_REFERENCE,
        "iri-reference": _URI_REFERENCE,
        "json-pointer": _POINTER,
        "relative-json-pointer": _RELATIVE,
        "uri-template": _TEMPLATE,
        "regex": _regex(),
    }.items()
}
KNOWN = NAMED | NARROWER.keys() | PATTERNS.keys()
