"""Personal data in texts: e-mail, telephone, payment cards, bank accounts, IP addresses, national numbers.

Numbers are validated, not guessed by their look: telephones by the numbering plans of phonenumbers (national
ones of `region` where something stands between their digits, of all countries with a leading +), cards by
Luhn's sum and the networks' first digits, accounts by the IBAN's checksum and length, national numbers of
`region` by python-stdnum. IP addresses are those that the internet routes: 10.0.0.1 is nobody's. Names,
street addresses and dates of birth need a model and are not looked for.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address

from puna.core import BadValue
from puna.safety.scanners.finding import Finding, masked
from puna.safety.scanners.libraries import need

KIND = "personal"

# RFC 5321: 64 characters before the @, 63 for each label behind it
_MAIL = re.compile(
    r"(?<![\w.+%-])[A-Za-z0-9_+%-][\w.+%'-]{0,63}@(?:[A-Za-z0-9][A-Za-z0-9-]{0,62}\.){1,8}[A-Za-z]{2,24}"
    r"(?![\w@-])",
    re.ASCII,
)
_CARD = re.compile(r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d-]|[.,]\d)")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{1,4}){3,9}\b")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\w)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:|:(?=:)){2,7}[0-9A-Fa-f:.]{0,39}(?![\w:])")

# national numbers whose written form is their own: module of python-stdnum, form, name
_NATIONAL: Mapping[str, tuple[tuple[str, re.Pattern[str], str], ...]] = {
    "US": (("us.ssn", re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])"), "social security number"),),
    "CA": (("ca.sin", re.compile(r"(?<![\w-])\d{3}[ -]\d{3}[ -]\d{3}(?![\w-])"), "social insurance number"),),
    "BR": (("br.cpf", re.compile(r"(?<![\w.])\d{3}\.\d{3}\.\d{3}-\d{2}(?!\w)"), "CPF"),),
    "ES": (
        ("es.dni", re.compile(r"\b\d{8}-?[A-Z]\b"), "DNI"),
        ("es.nie", re.compile(r"\b[XYZ]-?\d{7}-?[A-Z]\b"), "NIE"),
    ),
    "IT": (
        ("it.codicefiscale", re.compile(r"\b[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z]\b"), "codice fiscale"),
    ),
    "IN": (("in_.pan", re.compile(r"\b[A-Z]{5}\d{4}[A-Z]\b"), "PAN"),),
}


def scan(text: str, region: str = "US") -> list[Finding]:
    """In their order; `region` is a country's code (ISO 3166-1).

    Raises BadInput without the extra `safety`, BadValue for a region without a numbering plan.
    """
    check_region(region)
    found = [*_numbers(text, region), *_phones(text, region), *_mails(text), *_addresses(text)]
    kept: list[Finding] = []
    for one in sorted(found, key=lambda f: (f.start, -f.end)):
        if not kept or one.start >= kept[-1].end:
            kept.append(one)
    return kept


def check_region(region: str) -> None:
    """Raises what scan() raises for it."""
    known = need("phonenumbers", "phonenumbers", "the scanner `personal`").SUPPORTED_REGIONS
    if region not in known:
        raise BadValue(
            f"a region must be a country's two capital letters, such as US or DE, got {region!r:.40}"
        )


def _finding(match: re.Match[str], rule: str, name: str) -> Finding:
    return Finding(match.start(), match.end(), KIND, rule, f"{name}: {masked(match[0])}")


def _mails(text: str) -> Iterator[Finding]:
    for match in _MAIL.finditer(text):
        if ".." not in match[0] and ".@" not in match[0]:
            yield _finding(match, "e-mail", "e-mail address")


def _numbers(text: str, region: str) -> Iterator[Finding]:
    """Those with a checksum or a form of their own, which telephone numbers might be taken for."""
    yield from _valid(text, _CARD, _card_check(), "payment-card", "payment card")
    yield from _ibans(text)
    for module, pattern, name in _NATIONAL.get(region, ()):
        check = need(f"stdnum.{module}", "python-stdnum", "the scanner `personal`").is_valid
        yield from _valid(text, pattern, check, "national-number", f"{name} ({region})")


def _valid(
    text: str, pattern: re.Pattern[str], check: Callable[[str], bool], rule: str, name: str
) -> Iterator[Finding]:
    return (_finding(match, rule, name) for match in pattern.finditer(text) if check(match[0]))


def _card_check() -> Callable[[str], bool]:
    luhn = need("stdnum.luhn", "python-stdnum", "the scanner `personal`")

    def check(text: str) -> bool:
        digits = re.sub(r"\D", "", text)
        return len(set(digits)) > 1 and len(digits) in _card_lengths(digits) and luhn.is_valid(digits)

    return check


def _card_lengths(digits: str) -> tuple[int, ...]:
    """How many digits a card has whose first ones are these; none where no network issues them."""
    four = int(digits[:4])
    if digits[0] == "4":
        return (13, 16, 19)  # Visa
    if 5100 <= four <= 5599 or 2221 <= four <= 2720:
        return (16,)  # Mastercard
    if digits[:2] in ("34", "37"):
        return (15,)  # American Express
    if four == 6011 or 6440 <= four <= 6599 or digits[:2] == "62" or 3528 <= four <= 3589:
        return (16, 17, 18, 19)  # Discover, UnionPay, JCB
    return (14,) if digits[:2] in ("36", "38", "39") or 3000 <= four <= 3059 else ()  # Diners Club


def _ibans(text: str) -> Iterator[Finding]:
    """A word behind a number may look like one more group of it: the longest valid part counts."""
    is_valid = need("stdnum.iban", "python-stdnum", "the scanner `personal`").is_valid
    for match in _IBAN.finditer(text):
        ends = [match.end(), *(match.start() + i for i, c in enumerate(match[0]) if c == " ")]
        end = next((end for end in sorted(ends, reverse=True) if is_valid(text[match.start() : end])), None)
        if end is not None:
            detail = f"bank account (IBAN): {masked(text[match.start() : end])}"
            yield Finding(match.start(), end, KIND, "bank-account", detail)


def _addresses(text: str) -> Iterator[Finding]:
    for pattern in (_IPV4, _IPV6):
        for match in pattern.finditer(text):
            if _is_public(match[0].rstrip(".")):
                yield _finding(match, "ip-address", "IP address")


def _is_public(text: str) -> bool:
    try:
        return ip_address(text).is_global
    except ValueError:
        return False


def _phones(text: str, region: str) -> Iterator[Finding]:
    library = need("phonenumbers", "phonenumbers", "the scanner `personal`")
    leniency = library.Leniency.VALID
    for match in library.PhoneNumberMatcher(text, region, leniency=leniency, max_tries=sys.maxsize):
        # sizes and counts in code, and pairs of decimal numbers, are valid in some plan as well
        raw = match.raw_string
        if not raw.isdigit() and not {"/", "."} <= {*raw} and sum(c.isdigit() for c in raw) >= 7:
            detail = f"telephone number: {masked(match.raw_string)}"
            yield Finding(match.start, match.end, KIND, "telephone", detail)
