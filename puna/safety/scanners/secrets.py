"""Keys and passwords in texts: the rules of detect-secrets, and a few younger forms of keys that it lacks.

Every rule knows the form of one maker's keys, but one: a name such as `password` or `api_key` and a value
that looks random (letters and digits, at least 3 bits of entropy for each character). Randomness alone is no
finding: hashes, digests and encoded data are everywhere in ordinary texts. Nothing is sent to anybody to try
a key, which detect-secrets could do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from math import log2
from typing import Any

from puna.safety.scanners.finding import Finding, masked
from puna.safety.scanners.libraries import need

KIND = "secrets"

_PLUGINS = (
    ("artifactory", "ArtifactoryDetector"), ("aws", "AWSKeyDetector"),
    ("azure_storage_key", "AzureStorageKeyDetector"), ("basic_auth", "BasicAuthDetector"),
    ("cloudant", "CloudantDetector"), ("discord", "DiscordBotTokenDetector"),
    ("github_token", "GitHubTokenDetector"), ("gitlab_token", "GitLabTokenDetector"),
    ("ibm_cloud_iam", "IbmCloudIamDetector"), ("ibm_cos_hmac", "IbmCosHmacDetector"),
    ("mailchimp", "MailchimpDetector"), ("npm", "NpmDetector"),
    ("openai", "OpenAIDetector"), ("pypi_token", "PypiTokenDetector"), ("sendgrid", "SendGridDetector"),
    ("slack", "SlackDetector"), ("softlayer", "SoftlayerDetector"), ("square_oauth", "SquareOAuthDetector"),
    ("stripe", "StripeDetector"), ("telegram_token", "TelegramBotTokenDetector"),
    ("twilio", "TwilioKeyDetector"),
)  # fmt: skip
# forms that detect-secrets 1.5 lacks; of web tokens it leaves out the signature ("eyJ" is base64 of `{"`)
_OURS = (
    ("Anthropic key", [re.compile(r"\bsk-ant-[a-z]{3,5}\d\d-[A-Za-z0-9_-]{40,}")]),
    ("GitHub fine-grained token", [re.compile(r"\bgithub_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}\b")]),
    ("Google API key", [re.compile(r"\bAIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])")]),
    ("Hugging Face token", [re.compile(r"\bhf_[A-Za-z]{34}\b")]),
    ("JSON web token", [re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")]),
    ("Puna key", [re.compile(r"\bpuna-[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])")]),
)
_NAMED = re.compile(
    r"(?:passwords?|passwd|pwd|passphrase|secret(?:_?key)?|(?:api|auth|access|account|client|service|private)_?key"
    r"|(?:access|auth|api|bearer|refresh)_?token)\w{0,20}[\"'`\])]{0,2}\s{0,3}(?:=>|:=|={1,3}|:)\s{0,3}[\"'`]?"
    r"([^\s\"'`,;]{10,200})",
    re.IGNORECASE,
)
_PRIVATE_KEY = re.compile(r"-----BEGIN ([A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?)-----")
_LONGEST_KEY = 20_000  # characters
_PIECE, _OVERLAP = 4096, 512  # characters of a line: the library's expressions grow with its square
_LEAST_ENTROPY, _LEAST_LENGTH = 3.0, 10
_REFERENCE = re.compile(r"[$%{<(\[]|\w+(?:\.\w+)+$|https?:|/|.*\(")  # a variable, a call, a path: no value


def scan(text: str) -> list[Finding]:
    """Secrets in their order; what two rules find is told once.

    Raises BadInput without the extra `safety`.
    """
    found = list(_private_keys(text))
    for start, line in _pieces(text):
        found += _in_line(start, line)
    return _without_overlaps(found)


def _private_keys(text: str) -> Iterator[Finding]:
    """From the first line to the last, or the first alone where no last one follows."""
    for match in _PRIVATE_KEY.finditer(text):
        last = f"-----END {match[1]}-----"
        at = text.find(last, match.end(), match.end() + _LONGEST_KEY)
        end = match.end() if at < 0 else at + len(last)
        yield Finding(match.start(), end, KIND, "private-key", match[1].lower())


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    start = 0
    for line in text.splitlines(keepends=True):
        for at in range(0, max(1, len(line) - _OVERLAP), _PIECE - _OVERLAP):
            yield start + at, line[at : at + _PIECE]
        start += len(line)


def _in_line(start: int, line: str) -> Iterator[Finding]:
    for name, patterns in (*_OURS, *_makers()):
        for pattern in patterns:
            for match in pattern.finditer(line):
                yield _finding(start + match.start(), match[0], name)
    for match in _NAMED.finditer(line):
        if _looks_random(match[1]):
            yield _finding(start + match.start(1), match[1], "value of a secret's name")


def _finding(start: int, value: str, name: str) -> Finding:
    rule = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return Finding(start, start + len(value), KIND, rule, f"{name}: {masked(value)}")


@cache
def _makers() -> Sequence[tuple[str, Sequence[re.Pattern[str]]]]:
    """Names and forms of the keys that detect-secrets knows."""
    made = [_plugin(module, name) for module, name in _PLUGINS]
    return [(one.secret_type, list(one.denylist)) for one in made]


def _plugin(module: str, name: str) -> Any:
    library = need(f"detect_secrets.plugins.{module}", "detect-secrets", "the scanner `secrets`")
    return getattr(library, name)()


def _looks_random(value: str) -> bool:
    if len(value) < _LEAST_LENGTH or _REFERENCE.match(value) or re.search(r"\s", value):
        return False
    kinds = (str.isdigit, str.isalpha)
    return all(any(map(kind, value)) for kind in kinds) and entropy(value) >= _LEAST_ENTROPY


def entropy(text: str) -> float:
    """Shannon's, in bits for each character, of how often each occurs."""
    return -sum(n / len(text) * log2(n / len(text)) for n in Counter(text).values())


def _without_overlaps(found: Sequence[Finding]) -> list[Finding]:
    """The longest of those that overlap; of equal ones the first."""
    kept: list[Finding] = []
    end = 0
    for one in sorted(dict.fromkeys(found), key=lambda f: (f.start, -f.end)):
        if one.start >= end:
            kept.append(one)
            end = one.end
    return kept
