"""Sequence classifiers in Hugging Face's layout, such as Llama Prompt Guard 2. [extra: torch]

Needs transformers. Only safetensors are read and no code of the folder is run. The score is what the classes
other than the harmless one get together: for Prompt Guard 2's two classes that of the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from puna.core import BadFile
from puna.safety.scanners.libraries import need

_WINDOW = 512  # tokens that Prompt Guard was trained on
_HARMLESS = ("benign", "safe", "legit", "label_0")


class SequenceClassifier:
    """A puna.safety.classifiers.injection.Encoder. Not for several threads at once."""

    def __init__(self, folder: Path) -> None:
        """Raises BadFile; BadInput where transformers is not installed."""
        library = need("transformers", "transformers", "an encoder in Hugging Face's layout", "transformers")
        library.utils.logging.disable_progress_bar()
        only_here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer = library.AutoTokenizer.from_pretrained(str(folder), **only_here)
            self._model = library.AutoModelForSequenceClassification.from_pretrained(
                str(folder), use_safetensors=True, dtype=torch.float32, **only_here
            ).eval()
        except (OSError, ValueError, LookupError, RuntimeError, TypeError) as error:
            said = str(error).strip().splitlines() or [""]
            raise BadFile(
                f"{folder} must be a sequence classifier with safetensors: {said[0]:.200}"
            ) from None
        self._harmless = _harmless(folder, self._model.config.id2label)
        self._begin = _some(self._tokenizer.cls_token_id)
        self._end = _some(self._tokenizer.sep_token_id)
        positions = getattr(self._model.config, "max_position_embeddings", _WINDOW)
        self.window = min(_WINDOW, positions) - len(self._begin) - len(self._end)

    def encode(self, text: str) -> Sequence[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def scores(self, windows: Sequence[Sequence[int]]) -> Sequence[float]:
        rows = [[*self._begin, *window, *self._end] for window in windows]
        longest = max(map(len, rows))
        pad = self._tokenizer.pad_token_id or 0
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        with torch.inference_mode():
            logits = self._model(input_ids=ids, attention_mask=mask).logits
        found: list[float] = (1 - logits.float().softmax(-1)[:, self._harmless]).clamp(0, 1).tolist()
        return found


def _some(token_id: int | None) -> list[int]:
    return [] if token_id is None else [token_id]


def _harmless(folder: Path, labels: dict[int, str]) -> int:
    """The class of harmless texts. Raises BadFile where names do not say which that is."""
    found = [i for i, name in labels.items() if name.lower() in _HARMLESS]
    if len(found) != 1 or len(labels) < 2:
        raise BadFile(
            f"{folder}/config.json must have two classes or more, one of them named {', '.join(_HARMLESS)}, "
            f"found {list(labels.values())}"
        )
    return found[0]
