"""Secrets: made when the test runs, so that this repository holds none; and texts that hold none."""

from __future__ import annotations

import base64
import json
import random
import secrets as random_secrets
import string
from pathlib import Path

import fastapi
import pytest

import puna
from puna.safety.scanners import secrets
from puna.safety.scanners.finding import masked

LETTERS = string.ascii_letters
ALL = LETTERS + string.digits
HEX = "0123456789abcdef"


def some(n: int, of: str = ALL) -> str:
    return "".join(random.choices(of, k=n))


def web_token() -> str:
    parts = [json.dumps(part).encode() for part in ({"alg": "HS256"}, {"sub": some(12)})]
    return ".".join(
        base64.urlsafe_b64encode(raw).decode().rstrip("=") for raw in (*parts, random.randbytes(32))
    )


FORMS = {
    "aws-access-key": lambda: "AKIA" + some(16, string.ascii_uppercase + "234567"),
    "github-token": lambda: "ghp_" + some(36),
    "github-fine-grained-token": lambda: f"github_pat_{some(22)}_{some(59)}",
    "gitlab-token": lambda: "glpat-" + some(20),
    "slack-token": lambda: f"xoxb-{some(12, string.digits)}-{some(12, string.digits)}-{some(24)}",
    "stripe-access-key": lambda: "sk_live_" + some(24),
    "openai-token": lambda: f"sk-proj-{some(20)}T3BlbkFJ{some(20)}",
    "anthropic-key": lambda: "sk-ant-api03-" + some(93),
    "google-api-key": lambda: "AIza" + some(35),
    "hugging-face-token": lambda: "hf_" + some(34, LETTERS),
    "puna-key": lambda: "puna-" + random_secrets.token_urlsafe(32),
    "json-web-token": web_token,
    "pypi-token": lambda: "pypi-AgEIcHlwaS5vcmc" + some(80),
    "sendgrid-api-key": lambda: f"SG.{some(22)}.{some(43)}",
    "twilio-api-key": lambda: "SK" + some(32, HEX),
    "telegram-bot-token": lambda: f"{some(10, '123456789')}:{some(35)}",
    "discord-bot-token": lambda: f"M{some(23)}.{some(6)}.{some(27)}",
    "mailchimp-access-key": lambda: some(32, HEX) + "-us12",
    "square-oauth-secret": lambda: "sq0csp-" + some(43),
}


@pytest.mark.parametrize("rule", FORMS)
def test_keys_of_many_makers_are_found_and_masked(rule: str) -> None:
    random.seed(rule)
    for _ in range(20):
        key = FORMS[rule]()
        [found] = secrets.scan(f"Here is it:\n{key} \nkeep it.")
        assert (found.rule, found.start) == (rule, 12)
        assert found.end >= 12 + len(key) - 1  # a sign at a key's end may belong to the sentence
        assert key[5:] not in found.detail


@pytest.mark.parametrize(
    "text",
    ['password = "{}"', "api_key: {}", "AWS_SECRET_ACCESS_KEY={}", '{{"client_secret": "{}"}}',
     "auth_token => '{}'", "https://bob:{}@db.corp.example/"],
)  # fmt: skip
def test_values_of_secrets_names_are_found(text: str) -> None:
    random.seed(text)
    value = some(8) + "7a" + some(14)
    [found] = secrets.scan(text.format(value))
    assert value in text.format(value)[found.start : found.end]
    assert value not in found.detail


def test_private_keys_are_found_whole() -> None:
    body = "\n".join(base64.b64encode(random.randbytes(48)).decode() for _ in range(20))
    for kind in ("RSA PRIVATE KEY", "OPENSSH PRIVATE KEY", "PRIVATE KEY", "PGP PRIVATE KEY BLOCK"):
        key = f"-----BEGIN {kind}-----\n{body}\n-----END {kind}-----"
        [found] = secrets.scan(f"a\n{key}\nb")
        assert (found.start, found.end, found.rule) == (2, 2 + len(key), "private-key")
        cut = f"a\n-----BEGIN {kind}-----\n{body[:100]}"
        assert secrets.scan(cut)[0].rule == "private-key"
    assert secrets.scan("-----BEGIN PUBLIC KEY-----\n" + body) == []


def test_a_key_deep_in_a_long_line_is_found() -> None:
    for at in (0, 3580, 3590, 4090, 50_000):
        [found] = secrets.scan("x " * (at // 2) + FORMS["github-token"]() + " y" * 3000)
        assert found.start == at


@pytest.mark.parametrize(
    "text",
    [
        "password = os.environ['PASSWORD1234567']", 'api_key="YOUR_API_KEY"', "password: ************",
        "secret_key = settings.secret_key_2024", 'token = "{{ vault.token_12345 }}"', "api_key=${API_KEY_V2}",
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "commit da39a3ee5e6b4b0d3255bfef95601890afd80709", "550e8400-e29b-41d4-a716-446655440000",
        "access_token: str = Field(max_length=2048)", "password: correct horse battery staple",
    ],
)  # fmt: skip
def test_what_only_looks_secret_is_left_alone(text: str) -> None:
    assert secrets.scan(text) == []


def test_real_code_and_texts_have_no_false_alarm() -> None:
    pages = [*Path(puna.__file__).parent.parent.glob("docs/*.md")]
    files = [*sorted(Path(fastapi.__file__).parent.rglob("*.py")), *pages]
    assert len(files) > 40
    assert [(path.name, found) for path in files for found in secrets.scan(path.read_text("utf-8"))] == []


def test_masks_show_too_little_to_use() -> None:
    assert masked("abcdefgh") == "ab… (8 characters)"
    assert masked("abc") == "… (3 characters)"
