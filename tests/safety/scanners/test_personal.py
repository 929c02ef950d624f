"""Personal data: numbers made by checksum, documented examples, and look-alikes."""

from __future__ import annotations

import random

import phonenumbers
import pytest
from stdnum import iban, luhn

from puna.core import BadValue
from puna.safety.scanners.personal import scan


def found(text: str, region: str = "US") -> list[tuple[str, str]]:
    return [(one.rule, text[one.start : one.end]) for one in scan(text, region)]


@pytest.mark.parametrize("region", ["US", "DE", "GB", "IN", "BR", "JP"])
def test_telephones_of_the_numbering_plans(region: str) -> None:
    number = phonenumbers.example_number_for_type(region, phonenumbers.PhoneNumberType.MOBILE)
    forms = phonenumbers.PhoneNumberFormat
    for form in (forms.INTERNATIONAL, forms.E164, forms.NATIONAL):
        written = phonenumbers.format_number(number, form)
        assert found(f"Call {written} now.", region) == [("telephone", written)]
    assert found(f"Call {phonenumbers.format_number(number, forms.E164)}.", "FR" if region != "FR" else "US")


@pytest.mark.parametrize(("first", "length"), [("4", 16), ("51", 16), ("2221", 16), ("37", 15), ("6011", 16),
                                               ("3528", 16), ("36", 14), ("62", 19)])  # fmt: skip
def test_cards_have_a_network_and_luhns_sum(first: str, length: int) -> None:
    random.seed(first)
    for _ in range(20):
        digits = first + "".join(random.choices("0123456789", k=length - len(first) - 1))
        card = digits + luhn.calc_check_digit(digits)
        spaced = " ".join(card[i : i + 4] for i in range(0, length, 4))
        dashed = spaced.replace(" ", "-")
        for written in (card, spaced, dashed):
            assert found(f"pay with {written}, please") == [("payment-card", written)]
        wrong = digits + str((int(card[-1]) + 1) % 10)
        assert not [rule for rule, _ in found(f"pay with {wrong}, please") if rule == "payment-card"]
    assert found("9" + card[1:]) == []


def test_accounts_by_their_checksum() -> None:
    for country, account in (
        ("DE", "370400440532013000"),
        ("GB", "NWBK60161331926819"),
        ("NO", "86011117947"),
    ):
        number = country + iban.calc_check_digits(f"{country}00{account}") + account
        spaced = " ".join(number[i : i + 4] for i in range(0, len(number), 4))
        assert found(f"to {number} today") == [("bank-account", number)]
        assert found(f"to {spaced} BY NOON") == [("bank-account", spaced)]
        wrong = number[:2] + f"{(int(number[2:4]) + 1) % 97:02}" + number[4:]
        assert "bank-account" not in dict(found(wrong))


@pytest.mark.parametrize(
    ("text", "region", "rule", "part"),
    [
        ("write to o'neil+news@mail.example.co.uk.", "US", "e-mail", "o'neil+news@mail.example.co.uk"),
        ("from 8.8.8.8:53", "US", "ip-address", "8.8.8.8"),
        ("host 2001:4860:4860::8888 is up", "US", "ip-address", "2001:4860:4860::8888"),
        ("SSN 536-90-4399.", "US", "national-number", "536-90-4399"),  # python-stdnum's example
        ("CPF 390.533.447-05", "BR", "national-number", "390.533.447-05"),
        ("DNI 54362315-K", "ES", "national-number", "54362315-K"),
        ("CF RCCMNL83S18D969H", "IT", "national-number", "RCCMNL83S18D969H"),
        ("SIN 123-456-782", "CA", "national-number", "123-456-782"),
    ],
)
def test_documented_examples(text: str, region: str, rule: str, part: str) -> None:
    assert found(text, region) == [(rule, part)]
    assert part not in scan(text, region)[0].detail


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1 and 192.168.1.1, ::1, fe80::1, 127.0.0.1", "version 1.2.3.4.5, v8.8.8.8",
        "000-12-3456 and 666-12-3456", "3.14159265358979323846", "2024-01-02 10:11:12",
        "a@b, @app.route, x @ y", "70.554/405.85", "6.1/9.2/18.4/27.6",
        "15032385536 bytes", "0000 0000 0000 0000", "std::vector<a::b>", "12:30:45",
    ],
)  # fmt: skip
def test_look_alikes_are_left_alone(text: str) -> None:
    assert found(text) == []


def test_a_region_is_a_country() -> None:
    with pytest.raises(BadValue, match="two capital letters, such as US or DE, got 'usa'"):
        scan("x", "usa")
