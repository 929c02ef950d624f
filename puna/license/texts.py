"""What texts beside a model say: front matter of README.md, LICENSE and NOTICE, pages that people see."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Mapping
from pathlib import Path

from puna.core import BadFile
from puna.license.agreements import Agreement, agreements

LONGEST = 4 << 20  # bytes of a text that is read
_TITLE = re.compile(
    r"\bLLAMA\s+(\d(?:\.\d)?)[\s*]+(?:COMMUNITY\s+LICENSE|Version\s+\w+\s+Date)", re.IGNORECASE
)
_KEY = re.compile(r"([A-Za-z_][\w-]*)\s*:\s*(.*)")
_HIDDEN = re.compile(
    r"<!--.*?(-->|\Z)|<(script|style|template|head|noscript)\b.*?(</\2\s*>|\Z)", re.DOTALL | re.IGNORECASE
)


def read_text(path: Path) -> str:
    """A text of at most LONGEST bytes. Raises BadFile for more, and for what is no UTF-8."""
    with path.open("rb") as file:
        data = file.read(LONGEST + 1)
    if len(data) > LONGEST:
        raise BadFile(
            f"{path} is larger than {LONGEST >> 20} MiB, so that it is no page or notice; name another"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadFile(f"{path} must be UTF-8 text and is not; convert it, as iconv does") from None


def front_matter(text: str) -> Mapping[str, tuple[str, ...]]:
    """Keys of the top level of a model card's YAML with their values: scalars, and lists of scalars.

    The part of YAML that model cards use; deeper values are left out.
    """
    lines = text.lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    found: dict[str, list[str]] = {}
    key, is_block = "", False
    for line in lines[1:]:
        if line.strip() in ("---", "..."):
            break
        if match := _KEY.fullmatch(line.rstrip()):
            key = match[1]
            found[key] = _values(match[2])
            is_block = re.fullmatch(r"[|>][+-]?", match[2].strip()) is not None
        elif key and is_block and line.startswith(" "):
            found[key] = [" ".join([*found[key], line.strip()])]
        elif key and (item := re.fullmatch(r"\s*-\s+([^:]*|[^:]+:\S.*)", line.rstrip())):
            found[key] += [_scalar(item[1])]
        elif line[:1].strip() and not line.startswith("#"):
            key = ""
    return {key: tuple(value for value in values if value) for key, values in found.items()}


def _values(text: str) -> list[str]:
    text = re.sub(r"(^|\s)#.*$", "", text).strip()
    if text.startswith("[") and text.endswith("]"):
        return [_scalar(item) for item in text[1:-1].split(",")]
    return [_scalar(text)] if text and text not in ("|", ">", "|-", ">-", "|+", ">+", "null", "~") else []


def _scalar(text: str) -> str:
    text = re.sub(r"\s#.*$", "", text).strip()
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def visible(text: str) -> str:
    """What a reader of a page or of Markdown sees of it, in one line: without comments, scripts and tags."""
    text = re.sub(r"<[^<>]*>", "", _HIDDEN.sub(" ", text))
    return re.sub(r"[\s*_`\u00a0]+", " ", html.unescape(text)).strip()


def shows(text: str, phrase: str) -> bool:
    """Whether readers of a text see a phrase, in any case."""
    return visible(phrase).lower() in visible(text).lower()


def agreement_of_text(text: str) -> tuple[Agreement, bool] | None:
    """Which agreement a LICENSE file is, by its title; True where it is the very text that Meta publishes."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    exact = next((one for one in agreements().values() if one.sha256 == digest), None)
    if exact is not None:
        return exact, True
    title = _TITLE.search(text[:2000])
    found = title and next((one for one in agreements().values() if one.version == title[1]), None)
    return (found, False) if found and found.kind == "community" else None


def agreement_of_notice(text: str) -> list[Agreement]:
    """Those whose notice line a text has."""
    seen = _plain(text)
    return [one for one in agreements().values() if one.notice and _plain(one.notice) in seen]


def _plain(text: str) -> str:
    """As it compares: in one line, with one sign for copyright."""
    return re.sub(r"\s+", " ", text.replace("(c)", "©").replace("(C)", "©")).strip()


def begins_with(name: str, prefix: str) -> bool:
    """Whether the last part of a name begins with a prefix, in any case and with any separators."""
    own = name.rstrip("/").rpartition("/")[2]
    words = r"[\s_.-]*".join(map(re.escape, prefix.split()))
    end = r"(?!\d)" if prefix[-1].isdigit() else ""  # Llama-30B does not begin with "Llama 3"
    return re.match(words + end, own, re.IGNORECASE) is not None
