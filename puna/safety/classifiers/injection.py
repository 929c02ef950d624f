"""Encoders that tell attacks on a prompt ("ignore all previous instructions") from ordinary texts.

A folder is one of two: Hugging Face's sequence classifiers (Llama Prompt Guard 2 and its like: config.json,
tokenizer.json, *.safetensors), or NanoGuard's (model.pt, tokenizer.pkl: the `assets` of the package
metatronnanoguard). A text longer than the encoder reads at once is judged in windows that overlap, and its
score is that of the worst one: nothing is cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from puna.core import BadFile
from puna.safety.classifiers.texts import InThread, readable
from puna.safety.scanners.libraries import need
from puna.safety.verdict import Verdict

CATEGORY = "prompt-injection"
THRESHOLD = 0.5  # both families' own
_OVERLAP = 4  # windows share a quarter of their tokens
_BATCH = 8  # windows at once


class Encoder(Protocol):
    """A loaded model."""

    window: int  # tokens of a text that it reads at once

    def encode(self, text: str) -> Sequence[int]: ...  # ids without those at begin and end

    def scores(self, windows: Sequence[Sequence[int]]) -> Sequence[float]: ...  # probability of an attack


class Injection(InThread):
    """The encoder of a folder, loaded once."""

    def __init__(self, folder: Path, threshold: float = THRESHOLD) -> None:
        """Raises BadFile for a folder that has no such model, BadInput where torch is not installed."""
        self._encoder = load(folder)
        self._threshold = threshold
        super().__init__(f"injection:{folder.resolve().name}", self._verdicts)

    def _verdicts(self, texts: Sequence[str]) -> Sequence[Verdict]:
        return [self._verdict(score) for score in scores(self._encoder, texts)]

    def _verdict(self, score: float) -> Verdict:
        is_unsafe = score >= self._threshold
        return Verdict(is_unsafe, score, (CATEGORY,) if is_unsafe else ())


def load(folder: Path) -> Encoder:
    """Raises what Injection() raises."""
    need("torch", "torch", "an injection encoder", "'puna[torch]'")
    if (folder / "model.pt").is_file() and (folder / "tokenizer.pkl").is_file():
        from puna.safety.classifiers.torch_nanoguard import NanoGuard

        return NanoGuard(folder)
    if (folder / "config.json").is_file():
        from puna.safety.classifiers.torch_sequence import SequenceClassifier

        return SequenceClassifier(folder)
    raise BadFile(
        f"{folder} must be the folder of an injection encoder: config.json with *.safetensors and "
        "tokenizer.json, or NanoGuard's model.pt and tokenizer.pkl; found neither"
    )


def scores(encoder: Encoder, texts: Sequence[str]) -> list[float]:
    """The highest score of each text's windows, from 0 to 1."""
    pieces = [windows(encoder.encode(readable(text)), encoder.window) for text in texts]
    flat = [window for text in pieces for window in text]
    found: list[float] = []
    for at in range(0, len(flat), _BATCH):
        found += encoder.scores(flat[at : at + _BATCH])
    each = iter(found)
    return [max(next(each) for _ in text) for text in pieces]


def windows(ids: Sequence[int], size: int) -> list[Sequence[int]]:
    """Runs of `size` tokens that share a quarter with the next; the last ends where the text ends."""
    last = max(0, len(ids) - size)
    starts = [*range(0, last, size - size // _OVERLAP), last]
    return [ids[start : start + size] for start in starts]
